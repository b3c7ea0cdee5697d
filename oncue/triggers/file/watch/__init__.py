"""Watches: notices of changes below a folder."""

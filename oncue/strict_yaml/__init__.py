"""Strict YAML files of users: a tree with positions, and option Structs from it."""

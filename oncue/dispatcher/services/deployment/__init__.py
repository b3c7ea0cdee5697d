"""Deployment of rule files: parse, check, plan, record, bind."""

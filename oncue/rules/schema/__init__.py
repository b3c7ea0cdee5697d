"""JSON Schema of rule files, for editors. Its keys are those of the parser."""

"""Read and validate configs: the schema, YAML files, overrides and error messages."""

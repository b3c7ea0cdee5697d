"""Shell functions: a script with `${...}` as a function."""

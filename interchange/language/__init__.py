"""The rule language: expressions, operators, parsing, programs and their execution."""

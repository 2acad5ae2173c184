"""The ``zipar`` command; one module per subcommand."""

"""Who decides: config, plan, driver, registry, search and the command line."""

"""Methods against each other on several seeds: runs, kept results, tables and figures."""

"""HTTP in, HTTP out: the service's API. Knows no torch; pictures are parsed in child processes."""

"""The studio over HTTP: routes, limits, security, errors, start and end."""

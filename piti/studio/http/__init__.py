"""The studio over HTTP: routes, limits, security, errors, startup and shutdown."""

"""The studio's service behind page and HTTP: models, jobs, inputs, stored images."""

"""What the studio does, whoever asks: models, jobs, inputs, pictures that are kept."""

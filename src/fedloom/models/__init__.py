"""Models: loading by id or folder, their configuration, and the embedded `nano` model."""

"""What engine, critics, overlays and generators share: protocols, errors, files, devices. Imports nothing of ours."""

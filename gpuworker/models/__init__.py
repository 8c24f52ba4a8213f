"""Model architectures in plain torch: configuration, registry, and one file per architecture."""

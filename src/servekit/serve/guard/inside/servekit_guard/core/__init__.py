"""The way to EngineCore: admission, hand-off, live configuration, and the plugin in the worker."""

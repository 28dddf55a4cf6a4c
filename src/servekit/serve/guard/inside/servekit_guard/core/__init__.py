"""The door to EngineCore: admission, hand-over, live configuration, and the plugin in the worker."""

"""What a configuration that cannot be used raises."""


class ConfigError(Exception):
    """The configuration cannot be used. The text names the key, what was found and what is allowed."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path

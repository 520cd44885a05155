# Protobuf builds these classes at import.
from typing import Any

class SessionLog:
    START: int
    def __init__(self, *, status: int = ...) -> None: ...

class Event:
    def __init__(
        self,
        *,
        wall_time: float = ...,
        step: int = ...,
        session_log: SessionLog = ...,
        summary: Any = ...,
    ) -> None: ...

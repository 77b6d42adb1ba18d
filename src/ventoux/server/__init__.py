"""`ventoux serve`: the engine behind the OpenAI and Mistral HTTP APIs, and a chat page."""

from ventoux.server.settings import Settings, hosts_for

__all__ = ["Settings", "hosts_for"]

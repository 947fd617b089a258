"""Local hosts made of namespaces, for tests and for trying godwit out. See hosts.py."""
from .hosts import Host, HostError, HostProcess, Hosts

__all__ = ["Host", "HostError", "HostProcess", "Hosts"]

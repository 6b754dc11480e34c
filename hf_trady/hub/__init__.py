"""Both ways between a directory and the Hugging Face Hub."""

from .transfer import PushToHubMixin, local_directory


__all__ = ["PushToHubMixin", "local_directory"]

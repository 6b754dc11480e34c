"""What is saved in a directory, brought to the Hub and back by huggingface_hub."""

import os
from collections.abc import Sequence, Set
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def local_directory(
    path: str | os.PathLike,
    names: Sequence[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: bool | str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The directory `path`; or, where there is none, one that holds what the Hub repository `path` has of the files
    `names`, all of the same commit.

    Args:
        path: A directory or a repository id.
        names: Files that are wanted; one that is missing is no error.
        subfolder: Where they are in it.
        revision: Branch, tag or commit of the repository; default: its main branch.
        token: As for huggingface_hub.
        cache_dir: Where downloads are kept; default: the cache of huggingface_hub.
        local_files_only: Look into that cache alone.
        force_download: Download what is there already anew.

    Raises:
        FileNotFoundError: If there is no such directory, repository or revision, or it can't be seen with this token.
        OSError: If the Hub can't be reached and there is no copy in the cache.
    """
    if Path(path).is_dir():
        return Path(path) / subfolder
    where = f"the Hub repository '{path}'"
    try:
        found = snapshot_download(
            str(path),
            allow_patterns=[f"{subfolder}/{name}" if subfolder else name for name in names],
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
    except HFValidationError:
        raise FileNotFoundError(
            f"no {names[0]} at '{path}', which is neither a directory nor the id of a Hub repository"
        ) from None
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{where} has no revision '{revision}'; give a branch, a tag or a commit") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"'{path}' is no directory, and {where} does not exist or is private; check the name, or pass token="
        ) from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{where} is not in the cache and can't be reached; check the connection, or local_files_only"
        ) from error
    except OSError as error:
        raise OSError(f"can't read {where}: {' '.join(str(error).split())}") from error
    return Path(found) / subfolder


class PushToHubMixin:
    """Uploads what `save_pretrained` writes."""

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write into `save_directory`."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        subfolder: str = "",
        create_pr: bool = False,
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes to a repository on the Hub, in one commit.

        Args:
            repo_id: Name of the repository, with or without a namespace; it is made if there is none.
            commit_message: Default: "Upload" and the name of the class.
            commit_description: The description of the commit.
            private: Whether a new repository is private; default: what its owner's settings say.
            token: As for huggingface_hub.
            revision: The branch to commit to; made if there is none.
            subfolder: Where in the repository.
            create_pr: Propose the commit in a pull request instead.

        Returns:
            The commit, with its address.
        """
        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)  # first: it may need other processes, which are not to wait in vain
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            start = f"{subfolder}/" if subfolder else ""
            paths = api.list_repo_files(repo_id, revision=revision)
            there = {path.removeprefix(start) for path in paths if path.startswith(start)}
            stale = self._complete(Path(folder), there, repo_id, subfolder)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                path_in_repo=subfolder or None,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                delete_patterns=stale or None,
            )

    def _complete(self, folder: Path, there: Set[str], repo_id: str, subfolder: str) -> list[str]:
        """Add to `folder` what is due besides what was saved.

        Args:
            folder: What is about to be uploaded.
            there: Names of the files in that place of the repository.
            repo_id: The repository.
            subfolder: The place in it.

        Returns:
            Which of the files `there` an earlier upload has left, and this one makes wrong.
        """
        return []

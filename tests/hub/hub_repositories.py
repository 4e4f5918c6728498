"""What the stand-in for the hub keeps: repositories with their commits, and its log."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Asked", "Repository"]


@dataclass(frozen=True)
class Asked:
    """A request and what came of it; ``status`` is 0 where the connection was dropped."""

    method: str
    path: str
    status: int
    authorized: bool
    host: str
    range: str | None


@dataclass
class Repository:
    """A repository of models or data sets, with all its commits."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Make ``files`` what the branch holds; return the commit's hash."""
        seed = repr((self.kind, self.id, len(self.commits)))
        digest = hashlib.sha1(seed.encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        sha = digest.hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    @property
    def head(self) -> str:
        return self.branches["main"]

    def sha(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

"""The hub: what a repository of models holds is brought here, and a bundle is brought there.

`huggingface_hub` does the talking. It reads HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE when it is
imported, so only functions import it: a flag that is wrong is told without it.
"""

import logging
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vitrail.errors import OutputError, WeightsError, nearest
from vitrail.weights import disk
from vitrail.weights.hub_client import TOKEN, NoAnswer, talking
from vitrail.weights.origin import OTHER_ENDINGS, SIDECARS, STANDARD_NAMES, choose

if TYPE_CHECKING:  # it imports torch
    from vitrail.weights.bundle import Bundle

INDEX = ".index.json"

_REPOSITORY = re.compile(r"\b[\w.-]{1,96}\b/\b[\w.-]{1,96}\b", re.ASCII)
_REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)


def fetch(name: str, revision: str | None = None) -> Path:
    """Bring what is needed of a hub repository OWNER/NAME, and give its folder in the cache.

    `revision` is a branch, a tag or a commit. What the cache has is not brought again, and is all
    there is with HF_HUB_OFFLINE=1. Raises `WeightsError` where the hub has not what is asked for
    or gives no answer, `OutputError` where the cache cannot be written.
    """
    _check(name, revision)
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        return _cached(name, revision)
    try:
        with talking(name, revision) as api:
            info = api.model_info(name, revision=revision)
            commit, names = str(info.sha), [file.rfilename for file in info.siblings or ()]
    except NoAnswer as error:
        with suppress(WeightsError):
            folder = _cached(name, revision)
            logging.getLogger(__name__).warning("%s\nThe copy in the cache is used.", error)
            return folder
        raise
    with talking(name, revision) as api:
        wanted = _needed(names, name)
        folder = Path([api.hf_hub_download(name, n, revision=commit) for n in wanted][-1]).parent
        for shard in _shards(folder / wanted[-1], names):
            api.hf_hub_download(name, shard, revision=commit)
    _remember(folder, revision or "main")
    return folder


def timm_repository(name: str) -> str:
    """Give the repository of one of timm's models; a name without its tag asks for the tags.

    Raises `WeightsError` that lists the tags where there are several.
    """
    _check(f"timm/{name}")
    if "." in name:
        return f"timm/{name}"
    from huggingface_hub import is_offline_mode

    found = [other for other in _timm(name) if other.partition(".")[0] == name]
    if len(found) == 1:
        return f"timm/{found[0]}"
    if found:
        names = [f"timm:{other}" for other in found]
        raise WeightsError(f'"{name}" was trained in several ways; name one:{_listing(names)}')
    where = "in the cache, and HF_HUB_OFFLINE is set" if is_offline_mode() else "on the hub"
    hint = nearest(name, _timm(name[: 2 * len(name) // 3]))
    raise WeightsError(f'there is no model "{name}" of timm {where}.{hint}')


def push(
    bundle: "Bundle",
    repository: str,
    *,
    private: bool = False,
    message: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload a bundle and its model card to the repository OWNER/NAME, and give the commit's URL.

    A repository or a branch (`revision`) that is missing is made; a card that is there is
    replaced. Of a path on this machine in the bundle's origin only the last name is published.
    Raises `OutputError` where the hub does not take it.
    """
    _check(repository, revision)
    from huggingface_hub import CommitOperationAdd, get_token, is_offline_mode

    from vitrail.weights.bundle import save
    from vitrail.weights.card import model_card, public

    if is_offline_mode():
        raise OutputError(f"{repository} cannot be written: HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise OutputError(
            f"{repository} cannot be written: the hub wants a token that may write there; {TOKEN}"
        )
    bundle = replace(bundle, origin=public(bundle.origin or {}))
    with TemporaryDirectory(prefix="vitrail-") as scratch:
        folder = save(bundle, Path(scratch) / "bundle")
        disk.write_bytes(folder / "README.md", model_card(bundle, repository).encode())
        files = [
            CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file)
            for file in sorted(folder.iterdir())
        ]
        with talking(repository, revision, writing=True) as api:
            api.create_repo(repository, private=private, exist_ok=True)
            if private and not api.model_info(repository).private:
                raise OutputError(
                    f"{repository} is there already and is public: nothing was uploaded; make it "
                    "private in its settings on the hub, or give another name"
                )
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            text = message or "Upload a vitrail bundle"
            return api.create_commit(
                repository, files, commit_message=text, revision=revision
            ).commit_url


def _check(repository: str, revision: str | None = None) -> None:
    """Raise `WeightsError` for a name that no repository or revision can have."""
    wrong = ("--" in repository, ".." in repository, repository.endswith(".git"))
    if not _REPOSITORY.fullmatch(repository) or any(wrong):
        page = re.match(r"https?://[^/]+/([^/]+/[^/?#]+)", repository)
        hint = f' Did you mean "{page[1]}"?' if page else ""
        raise WeightsError(
            f'"{repository}" is no repository of the hub.{hint} One is named OWNER/NAME, as in '
            '"google/vit-base-patch16-224", of letters, digits, "-", "_" and "."'
        )
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise WeightsError(f'"{revision}" is no revision: give a branch, a tag or a commit')


def _needed(names: Collection[str], where: str) -> list[str]:
    """Choose the configs and, last, the weights: a file or the index of its shards."""
    found = choose(names)
    if len(found) > 1:
        raise WeightsError(
            f"{where} holds several weight files, and none is the one that is looked for "
            f"first:{_listing(found)}\ndownload the one you mean, and give its path"
        )
    if not found:
        raise WeightsError(
            f"{where} holds no weights that are read here; looked for: "
            f"{', '.join(STANDARD_NAMES)}, or one *{', *'.join(OTHER_ENDINGS)}; "
            f"found:{_listing(sorted(names)) or ' no file'}"
        )
    return [*(name for name in SIDECARS if name in names), found[0]]


def _shards(index: Path, names: Collection[str]) -> list[str]:
    """Give the files that an index of shards names; a file that is none has no shards."""
    if not index.name.endswith(INDEX):
        return []
    from vitrail.weights.files import read_json

    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise WeightsError(f'{index} has no "weight_map": it should name the file of each tensor')
    shards = sorted({str(file) for file in table.values()})
    if missing := [shard for shard in shards if shard not in names or "/" in shard]:
        raise WeightsError(
            f"{index} names files that are not there:{_listing(missing)}\n"
            "the upload is not whole: ask its owner, or give another revision"
        )
    return shards


def _cached(name: str, revision: str | None) -> Path:
    """Give the folder of a repository that the cache holds whole, without a request."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where = f"the cached {name}"
    try:  # no pattern: what is needed is checked below, from what the cache has
        found = snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=[])
    except LocalEntryNotFoundError as error:
        raise WeightsError(
            f'{name} at revision "{revision or "main"}" is not in the cache '
            f"{constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; unset it once, to bring it here"
        ) from error
    folder = Path(found)
    names = {file.name for file in folder.iterdir() if file.is_file()}
    try:
        _shards(folder / _needed(names, where)[-1], names)
    except WeightsError as error:
        raise WeightsError(f"{error}\nwithout HF_HUB_OFFLINE, what lacks is brought") from error
    return folder


def _remember(folder: Path, revision: str) -> None:
    """Note in the cache which commit a branch or tag is: last, so that what has a note is whole."""
    note = folder.parent.parent / "refs" / revision
    if revision == folder.name or (note.is_file() and note.read_text() == folder.name):
        return
    with disk.written(note):
        note.parent.mkdir(parents=True, exist_ok=True)
    disk.write_bytes(note, folder.name.encode())


def _timm(part: str) -> list[str]:
    """Give timm's models with `part` in their names: those on the hub, offline the cache's."""
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        folders = Path(constants.HF_HUB_CACHE).glob(f"models--timm--*{part}*")
        return sorted(folder.name.removeprefix("models--timm--") for folder in folders)
    with talking(f"timm/{part}") as api:
        models = api.list_models(author="timm", search=part, limit=200)
        return sorted(model.id.removeprefix("timm/") for model in models)


def _listing(names: Sequence[str], most: int = 20) -> str:
    more = [f"... and {len(names) - most} more"] if len(names) > most else []
    return "".join(f"\n  {name}" for name in [*names[:most], *more])

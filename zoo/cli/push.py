"""``zoo push``: publish models of a registry on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli import options as given
from zoo.cli.output import Output
from zoo.system.errors import Unreachable, UsageError, ZooError

if TYPE_CHECKING:
    from zoo.hub.push import Pushed
    from zoo.hub.repository import Content


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A model's name, or a pattern as 'rnascl-*'.", autocompletion=given.model_names
        ),
    ],
    repo_id: Annotated[
        str, typer.Option("--repo-id", metavar="ORG/NAME", help="The repository; {name} stands for the model's name.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make new repositories private.")] = False,
    collection: Annotated[
        str | None, typer.Option(metavar="TITLE", help="Put the repositories into this collection too.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="Of the card and the registry, as apache-2.0 or mit.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Replace this commit, which the registry does not refer to.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Of --dry-run: leave the files here.")
    ] = None,
    registry: given.RegistryFile = None,
    as_json: given.AsJson = False,
    quiet: given.Quiet = False,
    offline: given.Offline = False,
) -> None:
    """Publish a model on the Hugging Face Hub, and write its commit into the registry.

    The repository gets config.json, model.safetensors, an ONNX graph that agrees
    with the model, a model card with every measurement, records of these, and a
    plot. A model that was not measured under attack is refused. What is the same
    already is not sent again; a repository that somebody else has changed since
    is left as it is (exit code 5).

    A model of your own is published with the licence "unknown" unless --license
    states one. In a repository's name '@' becomes '-'. The token is that of `hf auth login`
    or HF_TOKEN. --dry-run uses no network.

    \b
    Examples:
      zoo push trades-s3 --repo-id me/trades-s3 --dry-run
      zoo push trades-s3 --repo-id me/trades-s3 --private
      zoo push "rnascl-*" --repo-id "me/{name}" --collection "RNAS-CL students"
      zoo push mine --repo-id me/mine --registry mine/registry.json --license mit
    """
    from zoo.registry.file import chosen
    from zoo.registry.pick import matching

    output = Output(as_json=as_json, quiet=quiet)
    if out and not dry_run:
        raise UsageError("--out is where --dry-run leaves the files: add --dry-run, or leave --out out")
    if offline and not dry_run:
        raise Unreachable("a push needs the Hub: leave --offline out, or add --dry-run")
    if dry_run and collection:
        raise UsageError("--dry-run makes no collection: leave --collection out")
    with chosen(registry):
        names = matching(name)
        if parent and len(names) > 1:
            raise UsageError("--parent is a commit of one repository: push that model alone")
        from zoo.hub.push import gather, orders, prepare, push
        from zoo.system.client import client_output

        ordered = orders(names, repo_id, license=license, offline=dry_run)
        with output.progress() as advance, client_output(not quiet):
            if dry_run:
                with TemporaryDirectory() as scratch:
                    made = prepare(ordered, out or Path(scratch), say=output.say, progress=advance)
                    planned = [_planned(one) for one in made]
                output.result({"dry_run": True, "repositories": planned}, _plan(planned))
                return
            done = push(ordered, private=private, parent=parent, say=output.say, progress=advance)
            failed: list[ZooError] = [one.error for one in done if one.error]
            if len(done) == 1 and failed:
                raise failed[0]
            where: str | None = None
            if collection and failed:
                output.say("no collection was made, because not every model was published: push again")
            elif collection:
                try:
                    where = gather(collection, done, private=private)
                except ZooError as error:  # what became of the models is still shown
                    failed.append(error)
            for each in failed:
                output.say(f"zoo: error: {each}")
    output.result({"pushed": [_facts(one) for one in done], "collection": where}, _outcome(done, where))
    if failed:
        raise typer.Exit(max(error.exit_code for error in failed))


def _planned(content: Content) -> dict[str, Any]:
    entry = content.entry.name
    return {"name": entry, "repo_id": content.repo_id, "files": content.listing(), "card": content.card}


def _plan(repositories: list[dict[str, Any]]) -> str:
    """The files of every repository; of a single one its card too."""
    from zoo.cli.output import table

    text = []
    for one in repositories:
        rows = [[file["path"], f"{file['size']:,}", file["sha256"]] for file in one["files"]]
        text += [f"{one['name']} would go to {one['repo_id']}:", "", table(["file", "bytes", "SHA-256"], rows), ""]
    return "\n".join([*text, repositories[0]["card"]] if len(repositories) == 1 else text[:-1])


def _facts(one: Pushed) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": one.name, "repo_id": one.repo_id}
    if one.error:
        error = {"type": type(one.error).__name__, "message": str(one.error), "exit_code": one.error.exit_code}
        return facts | {"error": error}
    return facts | {"revision": one.revision, "changed": list(one.changed), "deleted": list(one.deleted)}


def _outcome(done: list[Pushed], collection: str | None) -> str:
    from zoo.cli.output import table

    rows = [[one.name, one.repo_id, (one.revision or "-")[:12], _what(one)] for one in done]
    text = table(["model", "repository", "commit", "what was done"], rows, right=())
    return f"{text}\n\nCollection: {collection}" if collection else text


def _what(one: Pushed) -> str:
    if one.error:
        return f"exit code {one.error.exit_code}"
    if not one.changed and not one.deleted:
        return "the same already: no commit"
    return f"{len(one.changed)} files written, {len(one.deleted)} deleted"

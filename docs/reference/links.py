"""Make a link of every public name that a docstring writes in backticks."""

import re

import griffe

NAME = re.compile(r"(?<![`\[])`([A-Za-z_]+(?:\.[A-Za-z_]+)?)`(?![`\]])")


class Links(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        """Rewrite the docstrings of a package once all of it is read."""
        exports = {str(name) for name in pkg.exports or ()}

        def link(match: re.Match[str]) -> str:
            name = match[1]
            first, _, member = name.partition(".")
            known = first in exports and (not member or member in pkg[first].all_members)
            return f"[`{name}`][{pkg.path}.{name}]" if known else match[0]

        def visit(owner: griffe.Object) -> None:
            for member in owner.members.values():
                if not member.is_alias:
                    if member.docstring is not None:
                        member.docstring.value = NAME.sub(link, member.docstring.value)
                    visit(member)

        visit(pkg)

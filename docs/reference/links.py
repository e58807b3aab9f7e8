"""What the API pages make of docstrings, as the code has them.

A public name in backticks becomes a link. Parameters that share one description, `a, b: as in f`,
get it one by one, so that each stands in the list with its type and default.
"""

import re

import griffe

NAME = re.compile(r"(?<![`\[])`([A-Za-z_]+(?:\.[A-Za-z_]+)?)`(?![`\]])")
SHARED = re.compile(r"^ {4}((?:\w+,\s+)+\w+): (.*(?:\n {5,}.*)*)", re.M)


class Links(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: object) -> None:
        """Rewrite the docstrings of a package once all of it is read."""
        exports = {str(name) for name in pkg.exports or ()}

        def link(match: re.Match[str]) -> str:
            first, _, member = match[1].partition(".")
            if first not in exports or (member and member not in pkg[first].all_members):
                return match[0]
            # what has no docstring has no place on a page: its class tells of it
            described = member and pkg[first].all_members[member].has_docstring
            target = f"{first}.{member}" if described else first
            return match[0] if pkg[target].is_module else f"[{match[0]}][{pkg.path}.{target}]"

        def visit(owner: griffe.Object) -> None:
            for member in owner.members.values():
                if not member.is_alias:
                    if member.docstring is not None:
                        text = NAME.sub(link, member.docstring.value)
                        member.docstring.value = _one_by_one(text, _parameters(member))
                    visit(member)

        visit(pkg)


def _parameters(owner: griffe.Object) -> set[str]:
    if not isinstance(owner, griffe.Function | griffe.Class):
        return set()
    return {parameter.name for parameter in owner.parameters}


def _one_by_one(text: str, parameters: set[str]) -> str:
    def each(match: re.Match[str]) -> str:
        names = match[1].replace(",", " ").split()
        if not parameters.issuperset(names):
            return match[0]
        return "\n".join(f"    {name}: {match[2]}" for name in names)

    return SHARED.sub(each, text)

"""What became of the texts on their way to tokens, in words."""

from collections.abc import Iterator

from enginegate.models import ROLES, TEXT
from enginegate.report.numbers import counted, percent
from enginegate.results import Context


def size_line(context: Context) -> str:
    """How many texts or pairs, and of how many tokens each."""
    pairs = " pairs" if context.words.row == "pair" else ""
    if context.buckets:
        buckets = ", ".join(map(str, sorted(context.buckets)))
        return f"{counted(context.texts, context.words.row)} in buckets of {buckets} tokens"
    return f"{context.texts}{pairs} x {context.seq_len} tokens"


def tokens_line(context: Context) -> str:
    """Texts that were cut and the share of padding; empty in reports of older versions."""
    if context.cut is None:
        return ""
    own = f" (the model's own limit is {context.limit})" if context.limit else ""
    rows = counted(context.texts, context.words.row)
    return (
        f"{context.cut} of {rows} cut at {context.seq_len} tokens{own}, "
        f"{percent(context.padding)} of the positions are padding"
    )


def timed_line(context: Context) -> str:
    """The length of the texts that each batch size is timed with; empty where all have one."""
    sizes = (f"batch {size} at {tokens}" for size, tokens in sorted(context.timed.items()))
    return f"{', '.join(sizes)} tokens" if context.timed else ""


def prompts_line(context: Context) -> str:
    """The prompts by role; empty where there are none."""
    if len(context.prompts) == len(ROLES) and len(set(context.prompts.values())) == 1:
        return f'"{context.prompts[TEXT]}" before every text'
    return ", ".join(f'"{prompt}" before a {role}' for role, prompt in context.prompts.items())


def token_facts(context: Context) -> Iterator[tuple[str, str]]:
    """All that is to be said of it: `(name, statement)`."""
    prompts, otherwise = prompts_line(context), "; ".join(context.overruled)
    timed = "" if context.deployment else timed_line(context)
    found = {"tokens": tokens_line(context), "timed": timed, "prompts": prompts}
    found["the table says"] = otherwise
    return ((name, said) for name, said in found.items() if said)

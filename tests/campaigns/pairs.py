"""Start two scripts that write into the same folder, and compare with runs that had the folder to themselves.

    python tests/campaigns/pairs.py --count 200

The same command runs twice, or two commands share files. The second starts at a random time after the first. Each must
succeed, or end with exit code 2 and one sentence. At least one must succeed. A refused command runs again. Then the
files must be those of the two commands one after the other.
"""

from collections.abc import Callable
from functools import partial

from campaign import Campaign, Campaigner, Case, Finding, Outcome, end, parse_arguments
from processes import Hanging, Running, reap
from scripts_under_test import OTHERS, PAIRS, SCRIPTS, Digests, Script, Size, World, signature, snapshot, the_error

ALL = SCRIPTS | OTHERS
NAMES = {f"{one} + {other}": (one, other) for one, other in PAIRS}
FIRST_DONE = 0.9  # the second starts before the first has done this share of its work


def pairs(world: World, names: list[str]) -> Campaign:
    """Return the campaign over the pairs ``names``."""
    world.make(dict.fromkeys(script for name in names for script in NAMES[name] if script in SCRIPTS))
    expected = {name: _one_after_the_other(world, name) for name in names}

    def campaign(case: Case) -> Outcome:
        name = names[case.number % len(names)]
        scripts = [ALL[script] for script in NAMES[name]]
        outcome = Outcome(case.number, name, "")
        for script in scripts:
            world.prepare(script, case.folder)
        offset = case.random.uniform(0, FIRST_DONE) * world.unbroken[scripts[0].name].seconds
        offset *= case.random.choice((0, 0.2, 1, 1))  # often close together, so that both find an empty folder
        outcome.how = f"the second {offset:.3f} s after the first" + " (processes of their own)" * case.real
        _run_both(partial(world.start, folder=case.folder, real=case.real), scripts, offset, outcome)
        if not outcome.findings:
            problems = world.compare(scripts[0], case.folder, expected[name])
            outcome.findings = [Finding(f"files: {problem}", outcome.result) for problem in problems]
        return outcome

    return campaign


def _one_after_the_other(world: World, name: str) -> Digests:
    """Return the files of a pair of scripts that ran one after the other."""
    one, other = NAMES[name]
    if one == other:
        return world.unbroken[one].files
    folder = world.root / name.replace(" ", "")
    for run, script in enumerate((ALL[one], ALL[other])):
        world.prepare(script, folder)
        ended = world.run(script, folder, run)
        if ended.code:
            raise RuntimeError(f"{name}, one after the other: {ended.describe()}")
    return snapshot(folder)


def _run_both(start: Callable[..., Running], scripts: list[Script], offset: float, outcome: Outcome) -> None:
    """Run two scripts at once, and a refused one again. Add the findings to ``outcome``."""
    findings = outcome.findings
    running = [start(scripts[0], run=0)]
    running[0].ended_within(offset)
    alone = running[0].ended_within(0)
    running.append(start(scripts[1], run=1))
    ends = []
    for process in running:
        try:
            ends.append(process.wait())
        except Hanging as error:
            findings.append(Finding("hangs", str(error)))
            reap(0)
            return
    left = reap()
    if left:
        findings.append(Finding("processes left", "\n".join(left)))
    refused = [number for number, ended in enumerate(ends) if ended.code]
    outcome.result = ("one was refused", "both were refused")[len(refused) - 1] if refused else "both ended well"
    if alone:
        outcome.result, outcome.counts = "the first had ended", False
    if len(refused) == 2:
        findings.append(Finding("neither ended well", "\n".join(ended.describe() for ended in ends)))
    for number in refused:
        if ends[number].code != 2 or the_error(ends[number].stderr) is None:
            findings.append(Finding(signature(ends[number]), ends[number].describe()))
    for number in refused:
        try:
            again = start(scripts[number], run=2 + number).wait()
        except Hanging as error:
            findings.append(Finding("hangs when run again", str(error)))
            continue
        if again.code:
            findings.append(Finding(f"run again: {signature(again)}", again.describe()))


def main() -> None:
    args = parse_arguments(__doc__, 200, NAMES)
    with Campaigner(args.output, args.jobs, args.seed) as campaigner:
        campaign = pairs(campaigner.world(Size()), args.only or list(NAMES))
        end(campaigner.run("pairs", campaign, args.count, args.numbers or ()))


if __name__ == "__main__":
    main()

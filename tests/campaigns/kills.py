"""Kill scripts at random moments, run them again, and compare with unbroken runs.

    python tests/campaigns/kills.py --count 500

A script gets SIGKILL, as from the kernel when memory is short, or SIGTERM or Ctrl-C. The signal comes at a random time,
after a random number of changes in its folder, or just before it makes, renames or removes a random file. Files with
final names must be whole. The same command runs again. It must end with exit code 0 and the files of an unbroken run,
and leave no process.
"""

import signal
from pathlib import Path

from campaign import Campaign, Campaigner, Case, Finding, Outcome, end, parse_arguments
from processes import FolderWatch, Hanging, Running, reap
from scripts_under_test import SCRIPTS, Script, Size, World, signature, the_error

SIGNALS = {signal.SIGKILL: 0.8, signal.SIGTERM: 0.1, signal.SIGINT: 0.1}
START_SECONDS = 4.0  # that a new process needs for imports


def watch(folder: Path, running: Running) -> int:
    """Count the changes in a folder until a run has ended."""
    with FolderWatch(folder) as changes:
        return changes.wait(running, None)


def kills(world: World, names: list[str]) -> Campaign:
    """Return the campaign over the scripts ``names``."""
    world.make(names, watch)

    def campaign(case: Case) -> Outcome:
        name = names[case.number % len(names)]
        script = SCRIPTS[name]
        outcome = Outcome(case.number, name, "", how="")
        world.prepare(script, case.folder)
        times = 1 if case.random.random() < 0.75 else case.random.randint(2, 3)
        hits, how = 0, []
        for run in range(times):
            hit, description, findings = _kill_once(world, case, script, run)
            how.append(description)
            outcome.findings += findings
            hits += hit
            if not hit:
                break
        outcome.how = "; ".join(how) + " (processes of their own)" * case.real
        outcome.counts = hits > 0
        outcome.result = f"killed {hits} times" if hits > 1 else "killed" if hits else "too late"
        outcome.findings += _run_again(world, case, script, times)
        return outcome

    return campaign


def _kill_once(world: World, case: Case, script: Script, run: int) -> tuple[bool, str, list[Finding]]:
    """Start a script and kill it. Return whether the signal reached it, how, and the findings."""
    dice = case.random
    unbroken = world.unbroken[script.name]
    number = dice.choices(list(SIGNALS), list(SIGNALS.values()))[0]
    ways = ["time"] + ["change"] * bool(unbroken.watched) + ["file"] * bool(unbroken.file_events and not case.real)
    way = dice.choice(ways)
    with FolderWatch(case.folder) as changes:
        if way == "file":
            at = dice.randint(1, max(unbroken.file_events, 1))
            how = f"{number.name} before file event {at} of {unbroken.file_events}"
            running = world.start(script, case.folder, run, die_at=(at, number))
            hit = True
        else:
            running = world.start(script, case.folder, run, real=case.real)
            if way == "time":
                at = dice.uniform(0, unbroken.seconds + (START_SECONDS if case.real else 0))
                how = f"{number.name} after {at:.3f} s of {unbroken.seconds:.3f}"
                running.ended_within(at)
            else:
                at = dice.randint(1, max(unbroken.watched, 1))
                how = f"{number.name} at change {at} of {unbroken.watched}"
                changes.wait(running, at)
            hit = running.send(number)
        findings = []
        try:
            ended = running.wait()
        except Hanging as error:
            return hit, how, [Finding(f"hangs after {number.name}", str(error))]
    if way == "file":
        hit = ended.code not in (0, 2) or (number != signal.SIGKILL and ended.code != 2)
    left = reap()
    if left:
        findings.append(Finding(f"processes left after {number.name}", "\n".join(left)))
    expected = {-number, 0} | ({130} if number != signal.SIGKILL else set())
    if ended.code not in expected:
        findings.append(Finding(f"{number.name}: {signature(ended)}", ended.describe()))
    elif number == signal.SIGINT and "Traceback" in ended.stderr and "errors.py" in ended.stderr:
        findings.append(Finding(f"Ctrl-C: {signature(ended)}", ended.describe()))
    problems = world.compare_stopped(script, case.folder)
    findings += [Finding(f"after {number.name}: {problem}", ended.describe()) for problem in problems]
    return hit, how, findings


def _run_again(world: World, case: Case, script: Script, run: int) -> list[Finding]:
    """Run a killed script again, to its end. Return the findings."""
    try:
        ended = world.run(script, case.folder, run, real=case.real)
    except Hanging as error:
        return [Finding("hangs when run again", str(error))]
    left = reap()
    findings = [Finding("processes left after the run", "\n".join(left))] if left else []
    if ended.code:
        said = "" if the_error(ended.stderr) else "not one sentence, "
        return [*findings, Finding(f"run again: {said}{signature(ended)}", ended.describe())]
    problems = world.compare(script, case.folder)
    if script.prints and ended.stdout.replace(str(case.folder), "") != world.unbroken[script.name].stdout:
        problems.append("another output")
    return findings + [Finding(f"run again: {problem}", ended.describe()) for problem in problems]


def main() -> None:
    args = parse_arguments(__doc__, 500, SCRIPTS)
    with Campaigner(args.output, args.jobs, args.seed) as campaigner:
        campaign = kills(campaigner.world(Size()), args.only or list(SCRIPTS))
        end(campaigner.run("kills", campaign, args.count, args.numbers or ()))


if __name__ == "__main__":
    main()

"""What benches/start measures, once everything is in place. Not meant to be run by hand."""

import argparse
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time

PAYLOAD = "/sbin/init-bench"
RANGE = 1 << 30  # host ids for those that must be told


class Bench:
    """The programs, and the files each of them needs to start the tree."""

    def __init__(self, machinist, before, work):
        self.machinist, self.before, self.work = machinist, before, work
        self.tree, self.host = f"{work}/tree", f"{work}/host"
        self.probe, self.stamp = f"{work}/probe", f"{work}/stamp"
        self.tag = os.path.basename(work).rsplit("-", 1)[1].lower()
        self.definitions = f"{self.host}/etc/machinist/machines"
        os.makedirs(self.definitions)
        # Run files belong into memory, as on a real host.
        os.makedirs(f"{self.host}/run")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{self.host}/run"], check=True)

    def ours(self, verb, name, root, users="auto", boot=f'init = "{PAYLOAD}"'):
        name = f"{self.tag}-{name}"
        with open(f"{self.definitions}/{name}.toml", "w", encoding="utf-8") as file:
            file.write(f'register = "no"\n[boot]\n{boot}\n[root]\n{root}\n[users]\nmode = "{users}"\n')
        return [self.machinist, "--quiet", "--root", self.host, verb, name]

    def nspawn(self, *options, command=(PAYLOAD,), tree=None):
        fixed = ["--quiet", "--register=no", "--keep-unit", "--private-network"]
        return ["systemd-nspawn", *fixed, "-D", tree or self.tree, *options, *command]

    def crun(self, name, user_namespace):
        bundle = f"{self.work}/{name}"
        os.makedirs(bundle)
        subprocess.run(["crun", "spec"], cwd=bundle, check=True)
        with open(f"{bundle}/config.json", encoding="utf-8") as file:
            spec = json.load(file)
        spec["process"]["args"] = [PAYLOAD]
        spec["root"] = {"path": self.tree, "readonly": False}
        # Its device filter needs a limit that not every host lets be raised; the others here have none.
        spec["linux"].pop("resources", None)
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            own = next(line for line in file.read().splitlines() if line.startswith("0::"))[3:]
        spec["linux"]["cgroupsPath"] = f"{os.path.dirname(own)}/{name}"
        spec["linux"]["namespaces"].append({"type": "cgroup"})
        if user_namespace:
            spec["linux"]["namespaces"].append({"type": "user"})
            ids = [{"containerID": 0, "hostID": RANGE, "size": 65536}]
            spec["linux"].update(uidMappings=ids, gidMappings=ids)
        with open(f"{bundle}/config.json", "w", encoding="utf-8") as file:
            json.dump(spec, file)
        return ["crun", "--cgroup-manager=cgroupfs", "run", "--bundle", bundle, f"{self.tag}-{name}"]

    def candidates(self):
        overlay = f'overlay = {{ lower = ["{self.tree}"], upper = "%s" }}'
        directory = f'directory = "{self.tree}"'
        before = {}
        if self.before:
            for name, root, users in [
                ("before, users + overlay", overlay % "ephemeral", "auto"),
                ("before, users + kept overlay", overlay % "persistent", "auto"),
                ("before, users", directory, "auto"),
                ("before", directory, "host"),
            ]:
                _, *arguments = self.ours("run", f"before{len(before)}", root, users=users)
                before[name] = [self.before, *arguments]
        return before | {
            "machinist, users + overlay": self.ours("run", "eph", overlay % "ephemeral"),
            "machinist, users + kept overlay": self.ours("run", "per", overlay % "persistent"),
            "machinist, users": self.ours("run", "dir", directory),
            "machinist": self.ours("run", "host", directory, users="host"),
            "nspawn, users + overlay": self.nspawn("-U", "--volatile=overlay"),
            "nspawn, users": self.nspawn("-U", "--private-users-ownership=map"),
            "nspawn": self.nspawn(),
            "crun, users": self.crun("crun-users", True),
            "crun": self.crun("crun-plain", False),
            "bwrap": ["bwrap", "--unshare-all", "--bind", self.tree, "/", "--proc", "/proc", "--dev", "/dev", PAYLOAD],
        }


def on_terminal(argv, timeout=60):
    """Runs a program on a terminal of its own; gives what it printed."""
    pid, master = pty.fork()
    if pid == 0:
        os.execvp(argv[0], argv)
    output = b""
    deadline = time.monotonic() + timeout
    try:
        while select.select([master], [], [], max(0, deadline - time.monotonic()))[0]:
            data = os.read(master, 65536)
            if not data:
                break
            output += data
        else:
            os.kill(pid, signal.SIGKILL)
    except OSError:  # how Linux tells that the other side is closed
        pass
    _, status = os.waitpid(pid, 0)
    os.close(master)
    return output.decode(errors="replace"), os.waitstatus_to_exitcode(status)


def stamp_of(text):
    found = re.search(r"probe (\d+)", text)
    return int(found[1]) if found else None


def measure(bench, argv):
    """Milliseconds from the program's exec to the payload's first instruction."""
    program = shutil.which(argv[0])
    output, code = on_terminal([bench.probe, bench.stamp, program, *argv[1:]])
    end = stamp_of(output)
    if end is None or code != 0:
        raise RuntimeError(f"{' '.join(argv)} failed ({code}): {output.strip()}")
    with open(bench.stamp, encoding="utf-8") as file:
        return (end - stamp_of(file.read())) / 1e6


def usable(bench, candidates):
    """Leaves out what does not work on this host, and says so."""
    works = {}
    for name, argv in candidates.items():
        try:
            measure(bench, argv)
            works[name] = argv
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr)
    return works


def count_calls(bench, argv):
    """System calls of all processes until the payload's execve, the program's own execve included."""
    trace = f"{bench.work}/trace"
    on_terminal(["strace", "-f", "-o", trace, shutil.which(argv[0]), *argv[1:]])
    count, until = 0, None
    with open(trace, encoding="utf-8", errors="replace") as file:
        for line in file:
            _, _, call = line.partition(" ")
            call = call.lstrip()
            if not re.match(r"[a-z_0-9]+\(", call):
                continue  # a signal, an exit, or the second half of a call that was interrupted
            count += 1
            if call.startswith(("execve(", "execveat(")) and PAYLOAD in call and "init-bench" in call.split(",")[0]:
                until = count
                break
    os.unlink(trace)
    return until


def pss(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as file:
        values = dict(re.findall(r"^(\w+): +(\d+) kB", file.read(), re.MULTILINE))
    return int(values["Pss"])


def memory_of_ours(bench, count, program):
    overlay = f'overlay = {{ lower = ["{bench.tree}"], upper = "ephemeral" }}'
    commands = [bench.ours("start", f"mem{i}", overlay, boot='init = "auto"') for i in range(count)]
    commands = [[program, *arguments] for _, *arguments in commands]
    names = [argv[-1] for argv in commands]
    manage = [program, "--quiet", "--root", bench.host]
    try:
        for argv in commands:
            subprocess.run(argv, check=True)
        time.sleep(5)
        pids = []
        for name in names:
            status = subprocess.run([*manage, "status", "--json", name], check=True, capture_output=True)
            pids.append(json.loads(status.stdout)["supervisor"])
        return [pss(pid) for pid in pids]
    finally:
        subprocess.run([*manage, "stop", *names], check=False)


def memory_of_nspawn(bench, count):
    running = []
    try:
        for index in range(count):
            tree = f"{bench.work}/mem{index}"
            subprocess.run(["cp", "-a", bench.tree, tree], check=True)
            argv = bench.nspawn("-U", "--private-users-ownership=map", "-b", command=(), tree=tree)
            pid, master = pty.fork()
            if pid == 0:
                os.execvp(argv[0], argv)
            running.append((pid, master))
        deadline = time.monotonic() + 7
        masters = [master for _, master in running]
        while (left := deadline - time.monotonic()) > 0:
            for master in select.select(masters, [], [], left)[0]:
                os.read(master, 65536)
        return [pss(pid) for pid, _ in running]
    finally:
        for pid, _ in running:
            # A killed nspawn leaves its machine running, so its init goes first.
            with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
                for child in file.read().split():
                    os.kill(int(child), signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def fresh_range(bench, rounds):
    """First start with an id range never used on a tree of 1 GB, and the second start."""
    big = f"{bench.work}/big"
    subprocess.run(["cp", "-a", bench.tree, big], check=True)
    for directory in range(64):
        os.makedirs(f"{big}/srv/{directory}")
        for index in range(256):
            with open(f"{big}/srv/{directory}/{index}", "wb") as file:
                file.write(os.urandom(1 << 16))
    os.sync()
    first, second = [], []
    for index in range(rounds):
        argv = bench.ours("run", f"fresh{index}", f'directory = "{big}"')
        first.append(measure(bench, argv))
        second.append(measure(bench, argv))
    return first, second


def spread(values):
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(last * 0.1)], statistics.median(ordered), ordered[round(last * 0.9)]


def table(head, rows):
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for number, row in enumerate([head, *rows]):
        print("  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]))
        if number == 0:
            print("  ".join("─" * width for width in widths))
    print()


RATIOS = [
    ("machinist, users + overlay", "nspawn, users + overlay", None, None),
    ("machinist, users + overlay", "nspawn, users", 0.4, 0.2),
    ("machinist, users + kept overlay", "nspawn, users", 0.4, 0.2),
    ("machinist", "nspawn", 0.4, 0.2),
    ("machinist, users + overlay", "crun, users", 1.5, 1.0),
    ("machinist", "crun", 1.5, 1.0),
    ("machinist, users + overlay", "bwrap", None, None),
    ("machinist, users + overlay", "before, users + overlay", 1.05, None),
    ("machinist, users + kept overlay", "before, users + kept overlay", 1.05, None),
    ("machinist, users", "before, users", 1.05, None),
    ("machinist", "before", 1.05, None),
]


def report_times(times, calls):
    rows = []
    for name, values in times.items():
        low, median, high = spread(values)
        number = calls.get(name)
        rows.append([name, f"{median:.2f}", f"{low:.2f}", f"{high:.2f}", str(number) if number else "–"])
    table(["to the payload", "median ms", "p10", "p90", "calls"], rows)
    rows = []
    for ours, theirs, goal, end in RATIOS:
        if ours in times and theirs in times:
            ratio = statistics.median(times[ours]) / statistics.median(times[theirs])
            rows.append([f"{ours} / {theirs}", f"{ratio:.2f}", *(f"≤ {g}" if g else "" for g in (goal, end))])
    table(["ratio of medians", "here", "goal", "end goal"], rows)


def main():
    parser = argparse.ArgumentParser(prog="benches/start")
    parser.add_argument("--machinist", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--before", help="another binary of this program to compare with")
    parser.add_argument("--work", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="time,calls,memory,fresh")
    parser.add_argument("--json")
    options = parser.parse_args()
    only = set(options.only.split(","))
    bench = Bench(options.machinist, options.before, options.work)
    result = {}

    if only & {"time", "calls"}:
        candidates = usable(bench, bench.candidates())
        times = {name: [] for name in candidates}
        for _ in range(options.rounds if "time" in only else 1):
            for name in random.sample(list(candidates), len(candidates)):
                times[name].append(measure(bench, candidates[name]))
        calls = {name: count_calls(bench, argv) for name, argv in candidates.items()} if "calls" in only else {}
        report_times(times, calls)
        result |= {"milliseconds": times, "calls": calls}

    if "memory" in only:
        memory = {"machinist": memory_of_ours(bench, 8, bench.machinist), "nspawn": memory_of_nspawn(bench, 8)}
        if bench.before:
            memory["before"] = memory_of_ours(bench, 8, bench.before)
        rows = [[name, f"{statistics.mean(list_):.0f}", str(max(list_))] for name, list_ in memory.items()]
        table(["supervisor's PSS, 8 machines (goal ≤ 1024, end goal ≤ 512)", "mean KiB", "most"], rows)
        result["pss"] = memory

    if "fresh" in only:
        first, second = fresh_range(bench, max(10, options.rounds // 2))
        ratio = statistics.median(first) / statistics.median(second)
        rows = [["first start", f"{statistics.median(first):.2f}"], ["second start", f"{statistics.median(second):.2f}"]]
        rows.append(["ratio (goal ≤ 1.1)", f"{ratio:.2f}"])
        table(["fresh id range, tree of 1 GB", "median ms"], rows)
        result["fresh"] = {"first": first, "second": second}

    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file)


if __name__ == "__main__":
    main()

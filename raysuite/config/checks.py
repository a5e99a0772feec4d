"""What sections must agree on. Each check is a sentence about settings that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from math import comb, isfinite
from typing import Any

from raysuite.config.sections import TOYS, Credit, Model, Parameters, Preferences, Reference, Reward, Run, SoftPrompts
from raysuite.errors import UserError
from raysuite.kernel.objectives.trajectory_dpo import TrajectoryDpo

MOST_TUPLES = 1_000_000
"""Of one prompt's samples, which are all listed to choose from."""
ONLY_WITH: Mapping[str, Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "credit": {
        "previews": ("kind", ("previews",)),
        "preview_steps": ("kind", ("previews",)),
        "decay": ("kind", ("previews",)),
        "tracker_size": ("normalise", ("tracked",)),
        "tracker_minimum": ("normalise", ("tracked",)),
    },
    "parameters": {
        "rank": ("kind", ("lora",)),
        "alpha": ("kind", ("lora",)),
        "targets": ("kind", ("lora",)),
        "start": ("kind", ("lora", "all")),
    },
    "preferences": {
        "kept": ("choose", ("spread",)),
        "limit": ("choose", ("random", "spread", "all")),
        "temperature": ("label", ("bradley_terry",)),
    },
}
"""By section: settings that mean something only where another one of the section has one of these values."""


def without_idle(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A section's plain values, but for those that mean nothing beside the others."""
    idle = _idle(name, given)
    return {setting: value for setting, value in given.items() if setting not in idle}


def _idle(name: str, given: Mapping[str, Any]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of `ONLY_WITH`, a section's settings that mean nothing beside the values that are given or default."""
    default = Run.model_fields[name].default
    return {
        setting: (other, values)
        for setting, (other, values) in ONLY_WITH[name].items()
        if given.get(other, getattr(default, other)) not in values
    }


def check(run: Run) -> None:
    """All checks.

    Raises:
        UserError: sections contradict each other.
    """
    for agree in (
        _check_finite,
        _check_objective,
        _check_window,
        _check_rollouts,
        _check_learning,
        _check_credit,
        _check_preferences,
        _check_idle,
        _check_rewards,
        _check_guards,
        _check_model,
        _check_toy,
        _check_soft_prompts,
        _check_cluster,
    ):
        agree(run)


def _check_finite(run: Run) -> None:
    """Settings that no section types: config.json could not hold infinities and NaN among them."""
    free: dict[str, Any] = {"objective": run.objective, "model.arguments": run.model.arguments}
    free |= {f"the options of {entry.name}": entry.options for entry in (*run.rewards, *run.evaluation.entries)}
    for name, settings in free.items():
        if found := _infinite(settings):
            raise UserError(f"expected finite numbers in {name}, got {found}: correct it")


def _infinite(value: Any) -> str | None:
    """The first number within that is not finite."""
    if isinstance(value, float):
        return None if isfinite(value) else str(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next(filter(None, map(_infinite, inner)), None)


def _check_objective(run: Run) -> None:
    objective, name = run.built_objective, run.objective["name"]
    if objective.process == "reverse" and run.sampler.noise.level == 0:
        raise UserError(
            f"expected sampler.noise.level above 0 for {name}, got 0: it scores noisy steps, and a deterministic sampler has none; "
            "set sampler.noise.level=1"
        )
    if run.reference != Reference() and not objective.needs_reference:
        raise UserError(f"expected no reference settings with {name}, which compares with none: leave reference out")
    if objective.reference_is_sampler and not run.reference.refresh:
        raise UserError(
            f"expected reference.refresh of at least 1 with {name}, which compares with the policy that drew the pictures, got 0: set "
            "reference.refresh=1 (reference.decay makes the old policy a running mean). Against the model as it came it is another "
            "algorithm; objective.base_weight holds the policy near that"
        )
    if objective.reference_is_sampler and run.rollouts.staleness:
        raise UserError(
            f"expected rollouts.staleness=0 with {name}, which compares with the policy that drew the pictures, got "
            f"{run.rollouts.staleness}: leave staleness out"
        )
    if run.reference.decay > 0 and not run.reference.refresh:
        raise UserError(
            "expected reference.refresh above 0 with reference.decay, got 0: set how often the reference follows"
        )


def _check_window(run: Run) -> None:
    window, steps = run.sampler.window, run.sampler.steps
    if window is None:
        return
    until = window.first if window.until is None else window.until
    if window.first > until or until + window.size > steps:
        raise UserError(
            f"expected a window within the {steps} steps, got sampler.window.size={window.size} from step {window.first}"
            + (f" to {until}" if window.until is not None else "")
            + ": lower size, first or until"
        )
    if window.move == "fixed" and (window.until is not None or window.every > 1 or window.stride > 1):
        raise UserError(
            "expected no sampler.window.until, every or stride with move=fixed: set move to progressive or random, or leave them out"
        )
    if window.move == "random" and window.stride > 1:
        raise UserError("expected no sampler.window.stride with move=random, which begins anywhere: leave it out")
    if run.sampler.noise.level == 0:
        raise UserError(
            "expected sampler.noise.level above 0 with sampler.window, which says where noise is added: leave the window out"
        )


def _check_rollouts(run: Run) -> None:
    rollouts, shares = run.rollouts, run.learn.minibatches * run.cluster.workers
    if rollouts.prompts % rollouts.prompts_per_block:
        raise UserError(
            f"expected rollouts.prompts to be a multiple of rollouts.prompts_per_block, got {rollouts.prompts} and "
            f"{rollouts.prompts_per_block}: change one of them"
        )
    if rollouts.blocks % shares:
        raise UserError(
            "expected the blocks of an update (rollouts.prompts / rollouts.prompts_per_block = "
            f"{rollouts.blocks}) to divide evenly among learn.minibatches x cluster.workers = {shares}: change one of them"
        )
    drawn = rollouts.replay is None and run.preferences.source is None
    if not drawn and (rollouts.keep or rollouts.staleness):
        raise UserError(
            "expected rollouts to keep or to be stale, got a run that draws none (rollouts.replay or preferences.source is "
            "set): leave rollouts.keep and rollouts.staleness out"
        )


def _check_learning(run: Run) -> None:
    learn = run.learn
    if learn.decline == "constant" and learn.decline_until is not None:
        raise UserError(
            "expected no learn.decline_until with learn.decline=constant, got one: set decline to linear or cosine, or leave it out"
        )
    if learn.decline != "constant":
        if learn.decline_until is None or learn.decline_until < run.updates:
            raise UserError(
                f"expected learn.decline_until of at least updates={run.updates} with learn.decline={learn.decline}, got "
                f"{learn.decline_until or 'none'}: set it, or updates{' to what the budget allows' if run.budget else ''}; from there "
                "on the learning rate would be 0"
            )
        if learn.warmup >= learn.decline_until:
            raise UserError(
                f"expected learn.warmup below learn.decline_until={learn.decline_until}, got {learn.warmup}: lower it"
            )
    if learn.moment_bits == 8 and (learn.fused or run.cluster.shard):
        raise UserError(
            "expected no learn.fused and no cluster.shard with learn.moment_bits=8, got one: its step is a kernel of its own, and "
            "moments of 8 bits are not spread; leave them out"
        )
    if learn.fused and not run.cluster.worker_gpus:
        raise UserError(
            "expected cluster.worker_gpus above 0 with learn.fused, got 0: it is a kernel for GPUs; leave it out"
        )
    if run.evaluation.ema and learn.ema is None:
        raise UserError(
            "expected learn.ema with evaluation.ema, got none: set its decay, such as learn.ema=0.99, or leave evaluation.ema out"
        )


def _check_credit(run: Run) -> None:
    rollouts, credit, name = run.rollouts, run.credit, run.objective["name"]
    if run.built_objective.consumes != "advantages":
        if credit != Credit():
            raise UserError(
                f"expected no credit settings with {name}, which learns from preferences: leave credit out "
                "(trajectory_dpo has objective.discount)"
            )
        return
    if credit.normalise in ("group", "group_mean") and rollouts.samples < 2:
        raise UserError(
            f"expected rollouts.samples of at least 2 with credit.normalise={credit.normalise}, got 1: a group of one has no spread"
        )
    if credit.discount != 1 and run.built_objective.process == "forward":
        raise UserError(
            f"expected credit.discount=1 with {name}, got {credit.discount}: it learns from finished pictures alone, and has no "
            "steps to weight"
        )
    if credit.kind == "previews" and run.built_objective.process == "forward":
        raise UserError(
            f"expected credit.kind=terminal with {name}, got previews: it learns from finished pictures alone, and a mean over "
            "steps of what previews credit them with would punish those that looked good early"
        )
    if credit.kind == "previews":
        if not credit.previews or any(k >= run.sampler.steps for k in credit.previews):
            raise UserError(
                f"expected credit.previews to name numbers of steps below sampler.steps={run.sampler.steps}, got "
                f"{list(credit.previews)}: set for example credit.previews=[{max(1, run.sampler.steps // 2)}]"
            )
        if list(credit.previews) != sorted(set(credit.previews)):
            raise UserError(f"expected credit.previews in ascending order, got {list(credit.previews)}")
        if credit.normalise == "tracked":
            raise UserError(
                "expected credit.normalise of group, group_mean or global with credit.kind=previews, got tracked: running statistics "
                "are of whole rewards, not of steps"
            )
    if credit.normalise == "tracked" and credit.tracker_minimum > credit.tracker_size:
        raise UserError(
            f"expected credit.tracker_minimum of at most credit.tracker_size, got {credit.tracker_minimum} and "
            f"{credit.tracker_size}: a prompt's own statistics would never count"
        )


def _check_preferences(run: Run) -> None:
    preferences, name, process = run.preferences, run.objective["name"], run.built_objective.process
    if run.built_objective.consumes != "preferences":
        if preferences != Preferences():
            raise UserError(
                f"expected no preferences settings with {name}, which learns from rewards: leave preferences out"
            )
        return
    if preferences.held_out is not None and run.reference.refresh:
        raise UserError(
            f"expected reference.refresh=0 with preferences.held_out, got {run.reference.refresh}: what is held out is judged against "
            "the reference, which would follow the policy, so that its numbers would begin anew each time; leave one of them out"
        )
    if preferences.source is not None:
        if run.rollouts.replay is not None:
            raise UserError("expected preferences.source or rollouts.replay, got both: leave one out")
        settled = {"source": preferences.source, "held_out": preferences.held_out, "members": preferences.members}
        if preferences != Preferences(**settled):
            raise UserError(
                "expected no settings of preferences besides source, held_out and members, got others: in a set it is settled who "
                "is compared and who is preferred"
            )
        if preferences.source == preferences.held_out:
            raise UserError(
                "expected another set in preferences.held_out than in preferences.source, of which the run learns: encode one of "
                "rows that are not in it"
            )
    elif preferences.members > run.rollouts.samples:
        raise UserError(
            f"expected preferences.members of at most rollouts.samples, got {preferences.members} and "
            f"{run.rollouts.samples}: a ranking compares samples of one prompt"
        )
    if preferences.members == 1 and (name != "sft" or preferences.source is None):
        raise UserError(
            f"expected preferences.members of at least 2, got 1 with {name}: only sft on a set of pictures (preferences.source, by "
            "`raysuite encode --layout pictures`) compares nothing"
        )
    if preferences.members > 2 and process == "forward":
        raise UserError(
            f"expected preferences.members=2 with {name}, got {preferences.members}: rankings are for trajectory_dpo"
        )
    objective = run.built_objective
    if preferences.members > 2 and isinstance(objective, TrajectoryDpo) and objective.pairs_only:
        raise UserError(
            "expected preferences.members=2 with objective.link, label_smoothing or winner_margin, got "
            f"{preferences.members}: set it, or leave them out"
        )
    spread = preferences.choose == "spread"
    if spread and not preferences.members <= preferences.kept <= run.rollouts.samples:
        raise UserError(
            f"expected preferences.kept from preferences.members={preferences.members} to rollouts.samples="
            f"{run.rollouts.samples}, got {preferences.kept}: correct it"
        )
    if preferences.choose == "random" and preferences.limit is None:
        raise UserError("expected preferences.limit with preferences.choose=random: say how many rankings a prompt")
    among = preferences.kept if spread else run.rollouts.samples
    if preferences.choose != "best_worst" and comb(among, preferences.members) > MOST_TUPLES:
        raise UserError(
            f"expected at most {MOST_TUPLES} tuples of a prompt to choose from, got {comb(among, preferences.members)} of "
            f"{preferences.members} members among {among} samples: lower preferences.members, or set preferences.choose=spread with "
            "preferences.kept"
        )


def _check_idle(run: Run) -> None:
    for name in ONLY_WITH:
        section, default = getattr(run, name), Run.model_fields[name].default
        for setting, (other, values) in _idle(name, dict(section)).items():
            if getattr(section, setting) != getattr(default, setting):
                raise UserError(
                    f"expected no {name}.{setting} with {name}.{other}={getattr(section, other)}, which does not read it: set "
                    f"{name}.{other}={' or '.join(values)}, or leave {setting} out (where a recipe has it, {name}=null before "
                    f"your own settings of {name} does)"
                )


_ANOTHER = "scores are kept by name, so give the second one of its own (mine.rewards:Second, a class that extends the reward's)"


def _check_rewards(run: Run) -> None:
    names = [reward.name for reward in run.rewards]
    if len(set(names)) < len(names):
        raise UserError(f"expected every reward once, got {names}: add the weights up")
    besides = run.evaluation.entries
    if len({entry.name for entry in besides}) < len(besides):
        raise UserError(
            f"expected every reward of evaluation.rewards once, got {[entry.name for entry in besides]}: {_ANOTHER}"
        )
    for entry in besides:
        if entry.weight != 1:
            raise UserError(
                f"expected no weight in evaluation.rewards, whose scores are watched as they are, got {entry.weight:g} for "
                f"{entry.name}: leave it out"
            )
        for reward in run.rewards:
            same = entry.model_copy(update={"weight": reward.weight}) in (
                reward,
                Reward(name=reward.name, weight=reward.weight),
            )
            if entry.name == reward.name and not same:
                raise UserError(
                    f"expected evaluation.rewards to leave out {entry.name}, which is trained and so is evaluated, got it with "
                    f"other settings: {_ANOTHER}"
                )
    known = {entry.name for entry in (*run.rewards, *besides)}
    if isinstance(run.checkpoints.best, str) and run.checkpoints.best not in known:
        raise UserError(
            f"expected checkpoints.best of true, false or the name of a reward of the run ({', '.join(sorted(known))}), got "
            f"{run.checkpoints.best!r}: name it in evaluation.rewards, too"
        )
    if not any(reward.weight for reward in run.rewards):
        raise UserError(
            f"expected a reward to learn from, got weight 0 for {', '.join(names)}: give one another weight, and name what is only "
            "watched in evaluation.rewards"
        )
    if run.reward_scale != "given":
        if run.credit.normalise == "tracked":
            raise UserError(
                f"expected reward_scale=given with credit.normalise=tracked, got {run.reward_scale}: rewards of earlier "
                "updates, with which it compares, would be on another scale; leave one of them out"
            )
        if run.checkpoints.best is True and sum(reward.weight != 0 for reward in run.rewards) > 1:
            raise UserError(
                f"expected the name of a reward as checkpoints.best with reward_scale={run.reward_scale}, got true: evaluations have "
                "rewards as they are given, and the largest would decide; name one"
            )
        if run.preferences.source is not None:
            raise UserError(
                f"expected reward_scale=given with preferences.source, got {run.reward_scale}: in a set it is settled who is "
                "preferred; leave it out"
            )
        if run.credit.kind == "previews":
            raise UserError(
                f"expected reward_scale=given with credit.kind=previews, got {run.reward_scale}: a mean and a deviation are those of "
                "final pictures; leave one of them out"
            )
        if run.prompts.best_of:
            raise UserError(
                f"expected reward_scale=given with prompts.best_of={run.prompts.best_of}, got {run.reward_scale}: pictures choose "
                "before there is the batch of an update; leave one of them out"
            )
    if run.prompts.best_of and run.prompts.writer is None:
        raise UserError(
            f"expected prompts.writer with prompts.best_of={run.prompts.best_of}, which chooses between what users typed and its "
            "rewrites, got none: name a writer, or leave prompts.best_of out"
        )
    if run.prompts.writer is not None and run.preferences.source is not None:
        raise UserError(
            "expected no prompts.writer with preferences.source, whose pictures are of its own prompts: leave one of them out"
        )


def _check_guards(run: Run) -> None:
    """Guards that are to stop a run have to have something to look at; those that only warn need not."""
    guards, soft = run.guards, run.parameters.kind == "prompts"
    blind = {
        "held_out": None if run.prompts.held_out else "prompts.held_out",
        "watched": None if run.watched else "evaluation.rewards besides the trained ones",
        "kl": None if run.evaluation.kl and run.sampler.noise.level else "evaluation.kl=true and noise in the sampler",
        "prompts": None
        if soft and run.parameters.prompts.count > 1
        else "parameters.kind=prompts and parameters.prompts.count above 1",
        "spread": None if run.preferences.source is None else "pictures that are drawn, and no preferences.source",
    }
    for name, wanted in blind.items():
        if wanted and getattr(guards, name) == "stop":
            raise UserError(
                f"expected {wanted} with guards.{name}=stop, got none, so that it has nothing to look at: change that, or leave the "
                "guard out"
            )
    if guards.kl_limit is not None and (blind["kl"] or guards.kl == "ignore"):
        wanted = blind["kl"] or "guards.kl of warn or stop"
        raise UserError(
            f"expected {wanted} with guards.kl_limit, got a limit that nothing is held to: change that, or leave it out"
        )


def _check_model(run: Run) -> None:
    sampler, parameters = run.sampler, run.parameters
    if sampler.negative_prompt is not None and sampler.guidance == 1:
        raise UserError(
            "expected sampler.guidance above 1 with sampler.negative_prompt, got 1: it leads away from nothing"
        )
    asked = [name for name in ("channels_last", "compile") if getattr(run.model, name)]
    if asked and run.cluster.shard:
        raise UserError(
            f"expected no model.{asked[0]} with cluster.shard, which spreads networks as they come: leave one of them out"
        )
    started = Parameters(kind=parameters.kind, start=parameters.start, checkpointing=parameters.checkpointing)
    if parameters.start is not None and parameters.kind == "lora" and parameters != started:
        raise UserError(
            "expected no parameters.rank, alpha or targets with parameters.start, got some: the file's adapter has its own; leave "
            "them out"
        )


def _check_toy(run: Run) -> None:
    """The toys are formulas: without networks, encoders or guidance, and with three prompts."""
    toy = run.model.path
    if toy not in TOYS:
        return
    if {"scenes", "scenes-users"} & {run.prompts.training, run.prompts.held_out}:
        raise UserError(
            f"expected prompts.training=toy and prompts.held_out=toy with model.path={toy}: it knows three prompts"
        )
    if run.parameters.kind == "prompts":
        raise UserError(
            f"expected a model with text encoders for parameters.kind=prompts, got model.path={toy}: set another"
        )
    unread = {
        "model": sorted(set(Model.model_fields) - {"path"}),
        "parameters": ["rank", "alpha", "targets", "start", "checkpointing"],
        "prompts": ["writer"],
        "sampler": ["guidance", "negative_prompt", "embedded_guidance"],
    }
    for name, settings in unread.items():
        section = getattr(run, name)
        for setting in settings:
            if getattr(section, setting) != type(section).model_fields[setting].default:
                raise UserError(f"expected no {name}.{setting} with model.path={toy}, which is a formula: leave it out")


def _check_soft_prompts(run: Run) -> None:
    parameters, soft = run.parameters, run.parameters.prompts
    if parameters.kind != "prompts":
        if soft != SoftPrompts():
            raise UserError(
                f"expected no settings of parameters.prompts with parameters.kind={parameters.kind}, got some: set kind to prompts, "
                "or leave them out"
            )
        if run.preferences.across_draws:
            raise UserError(
                f"expected no preferences.across_draws with parameters.kind={parameters.kind}, which draws no prompts: leave it out"
            )
        return
    if soft.draw in ("member", "mean") and soft.spread != 1:
        raise UserError(
            f"expected no parameters.prompts.spread with draw={soft.draw}, which has no noise to widen, got {soft.spread:g}: leave "
            "it out"
        )
    if soft.count == 1 and soft.draw in ("independent", "correlated"):
        raise UserError(
            f"expected parameters.prompts.count of at least 2 with draw={soft.draw}, got 1, which has no spread: set draw to member"
        )
    if soft.count == 1 and soft.orthogonality:
        raise UserError(
            "expected parameters.prompts.orthogonality=0 with one soft prompt, which has none to be held apart from: set it"
        )
    if soft.words is not None and not soft.words.strip():
        raise UserError(
            f"expected words in parameters.prompts.words, got {soft.words!r}: write some, or leave it out to begin around 0"
        )
    if run.objective.get("prompt_dropout"):
        raise UserError(
            "expected objective.prompt_dropout=0 with parameters.kind=prompts, got more: guidance's other branch has no soft "
            "tokens, and is not trained; leave it out"
        )
    if run.cluster.encode_once:
        raise UserError(
            "expected cluster.encode_once=false with parameters.kind=prompts, got true: what encoders make of a prompt is what is "
            "trained; leave it out"
        )


def _check_cluster(run: Run) -> None:
    cluster = run.cluster
    known = [reward.name for reward in (*run.rewards, *run.watched)]
    if strange := sorted(cluster.judges.keys() - set(known)):
        raise UserError(
            f"expected cluster.judges of the run's rewards ({', '.join(known)}), got {strange[0]}: name one of them, or leave it out"
        )
    if cluster.workers > 1 and 0 < cluster.worker_gpus <= 0.5:
        raise UserError(
            f"expected cluster.worker_gpus above 0.5 with several workers, got {cluster.worker_gpus:g}: two learners on one GPU "
            "cannot sum their gradients; set for example cluster.worker_gpus=0.6 and cluster.actor_gpus=0.4"
        )
    if cluster.shard and (run.parameters.kind != "all" or cluster.workers == 1):
        raise UserError(
            f"expected parameters.kind=all and several cluster.workers with cluster.shard, got {run.parameters.kind} and "
            f"{cluster.workers}: a LoRA is small, and one worker has nobody to share with; leave it out"
        )
    if cluster.shard and not cluster.actors:
        raise UserError(
            "expected cluster.actors of at least 1 with cluster.shard, got 0: a learner that has a share of the network cannot draw; "
            "set cluster.actors, and cluster.actor_gpus with it"
        )
    if cluster.actor_gpus and not cluster.actors:
        raise UserError(
            f"expected no cluster.actor_gpus with cluster.actors=0, got {cluster.actor_gpus:g}: leave it out, or set cluster.actors"
        )
    if cluster.encode_once and run.parameters.kind == "all":
        raise UserError(
            "expected parameters.kind=lora with cluster.encode_once, got all: checkpoints are then whole pipelines, with the text "
            "encoders that learners do not have; leave it out"
        )

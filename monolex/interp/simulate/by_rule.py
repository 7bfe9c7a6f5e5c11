"""The simulator that needs no language model: it applies the rule of an explanation."""

from collections.abc import Sequence
from typing import final

from monolex.interp.records import Failure, Job, Prediction

KIND = "rules"


@final
class RulesSimulator:
    """Predicts what an explanation's own rule says, in the feature's own unit."""

    @property
    def kind(self) -> str:
        """`rules`."""
        return KIND

    def simulate(self, jobs: Sequence[Job]) -> list[Prediction | Failure]:
        """One prediction a job; a failure for explanations in words alone."""
        by_rule: dict[int, list[int]] = {}
        for number, job in enumerate(jobs):
            by_rule.setdefault(id(job.explanation), []).append(number)
        predictions: list[Prediction | Failure] = [Failure("the explanation has no rule")] * len(jobs)
        for numbers in by_rule.values():
            rule = jobs[numbers[0]].explanation.rule
            if rule is not None:
                for number, guess in zip(numbers, rule.predict_all([jobs[n].texts for n in numbers]), strict=True):
                    predictions[number] = guess
        return predictions

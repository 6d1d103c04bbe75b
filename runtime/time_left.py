"""How long training still takes, by the iterations that were done."""
import time
from typing import NamedTuple

LEAST_ITERATIONS, LEAST_SECONDS = 10, 5.0  # measured before the first estimate
SLOW_SECONDS = 60.0  # enough with fewer iterations


class Later(NamedTuple):
    """What follows a stage in the same command."""

    seconds: float  # of the iterations of later stages
    scorings: int  # of their networks on val


class TimeLeft:
    """An estimate that follows the iterations of one stage. The first iteration, in which much is
    done once, does not count; scoring on val does from the first one on that was met."""

    def __init__(self, iterations: int, scorings: int, later: Later | None) -> None:
        """`iterations` and `scorings` are to be done in this stage; `later` is None where it is the
        only one."""
        self.left, self.is_one_of_several = iterations, later is not None
        self.later_seconds, later_scorings = later or (0.0, 0)
        self.scorings = scorings + later_scorings
        self.scoring_seconds: float | None = None  # of the newest one
        self.done, self.began = -1, 0.0
        self.per_iteration: float | None = None  # seconds, None until enough was measured

    def tick(self) -> str:
        """To be called after each iteration; the estimate when it is there for the first time."""
        now = time.monotonic()
        self.left, self.done = self.left - 1, self.done + 1
        if not self.done:
            self.began = now
            return ''
        spent, is_first = now - self.began, self.per_iteration is None
        if is_first and not (spent >= SLOW_SECONDS or spent >= LEAST_SECONDS
                             and self.done >= LEAST_ITERATIONS):
            return ''
        self.per_iteration = spent / self.done
        return self.text if is_first else ''

    def scored(self, seconds: float) -> None:
        """To be called after each scoring with the seconds that it took."""
        self.scorings, self.scoring_seconds = self.scorings - 1, seconds
        self.began += seconds

    @property
    def text(self) -> str:
        """`about 14 min left over all stages`; '' before it was measured, and at the end."""
        if self.per_iteration is None:
            return ''
        seconds = (self.left * self.per_iteration + self.later_seconds
                   + self.scorings * (self.scoring_seconds or 0))
        if not seconds:
            return ''
        return (f'{duration_text(seconds)} left' + ' over all stages' * self.is_one_of_several
                + ', without scoring' * (self.scoring_seconds is None))


def duration_text(seconds: float) -> str:
    """`about 14 min`: a duration in two digits or so."""
    if seconds < 55:
        return f'about {max(1, round(seconds))} s'
    minutes = round(seconds / 60)
    if minutes < 90:
        return f'about {minutes} min'
    hours, days = seconds / 3600, seconds / 86400
    return f'about {hours:.1f} h' if hours < 48 else f'about {days:.1f} days'

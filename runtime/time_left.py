"""How long training still takes, by the iterations that were done."""
import time

LEAST_ITERATIONS, LEAST_SECONDS = 10, 5.0  # measured before the first estimate
SLOW_SECONDS = 60.0  # enough with fewer iterations


class TimeLeft:
    """An estimate that follows the iterations of one stage. The first iteration, in which much is
    done once, does not count; checkpoints and scoring on val do, as far as they were met."""

    def __init__(self, iterations: int, later: float | None) -> None:
        """`iterations` are to be done; `later` are the seconds of the stages that follow, None
        where this stage is the only one."""
        self.left, self.later = iterations, later
        self.done, self.began = -1, 0.0
        self.seconds: float | None = None  # left, None until enough was measured

    def tick(self) -> str:
        """To be called after each iteration; the estimate when it is there for the first time."""
        now = time.monotonic()
        self.left, self.done = self.left - 1, self.done + 1
        if not self.done:
            self.began = now
            return ''
        spent, is_first = now - self.began, self.seconds is None
        if is_first and not (spent >= SLOW_SECONDS or spent >= LEAST_SECONDS
                             and self.done >= LEAST_ITERATIONS):
            return ''
        self.seconds = self.left * spent / self.done + (self.later or 0)
        return self.text if is_first else ''

    @property
    def text(self) -> str:
        """`about 14 min left over all stages`; '' before it was measured, and at the end."""
        if not self.seconds:
            return ''
        return f'{duration_text(self.seconds)} left' + ' over all stages' * (self.later is not None)


def duration_text(seconds: float) -> str:
    """`about 14 min`: a duration in two digits or so."""
    if seconds < 55:
        return f'about {max(1, round(seconds))} s'
    minutes = round(seconds / 60)
    if minutes < 90:
        return f'about {minutes} min'
    hours, days = seconds / 3600, seconds / 86400
    return f'about {hours:.1f} h' if hours < 48 else f'about {days:.1f} days'

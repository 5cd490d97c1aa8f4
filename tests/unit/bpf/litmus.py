"""All that a few threads of loads, stores and barriers may come to on a weakly ordered processor.

The model is that of aarch64. Each access takes effect at one moment, for all threads (it is
multi-copy atomic), and a thread's accesses may do so in any order, except that

* accesses to one place keep their order, but for two loads that read the same store, and for a load
  that takes the value of its own thread's store before others see it;
* an access waits for the loads that its address or its value is made of;
* a store waits for the branches before it, and for the addresses of the accesses before it. A load
  waits for no branch: the processor guesses, and what a wrong guess has read is thrown away;
* acquire, release and barriers order what they say.

So an outcome that is not found here cannot happen there. Outcomes are found by trying every order.

The model of x86 is that a load may take effect before stores that come before it in its thread, and
that an atomic instruction is a full barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Literal

from unit.bpf.ops import (
    Add,
    Barrier,
    Exchange,
    Guess,
    Load,
    Ops,
    Path,
    Step,
    Store,
    paths,
    reads,
    writes,
)

Processor = Literal["aarch64", "x86"]
Outcome = Mapping[str, int]  # by place, and by "thread: register"; one that was never set has none
_Write = tuple[int, int]  # thread and step; (-1, 0): what was there at first
# Per step: None: not yet; a value and whose write it is; or (0, None) of what has no value.
_Result = tuple[int, _Write | None]
_Results = tuple[_Result | None, ...]
_History = tuple[tuple[int, _Write], ...]  # of a place: values in the order that all threads see
_State = tuple[tuple[_Results, ...], tuple[_History, ...]]
_DONE: _Result = (0, None)


def outcomes(
    program: Mapping[str, Ops], initial: Mapping[str, int], processor: Processor = "aarch64"
) -> list[Outcome]:
    """All of them. Places are 0 at first unless `initial` says otherwise."""
    found: dict[tuple[tuple[str, int], ...], Outcome] = {}
    for ways in product(*(tuple(paths(ops)) for ops in program.values())):
        for outcome in _Run(tuple(program), ways, initial, processor).explore():
            found[tuple(sorted(outcome.items()))] = outcome
    return list(found.values())


def _is_full(step: Step) -> bool:
    if isinstance(step, Exchange):
        return not step.relaxed
    return isinstance(step, Barrier) and step.kind == "full"


def _orders(barrier: Barrier, step: Step) -> bool:
    if barrier.kind == "full":
        return True
    return reads(step) if barrier.kind == "load" else writes(step)


def _waits_on_x86(later: Step, earlier: Step) -> bool:
    """The same there, where only a full barrier is more than the processor does by itself."""
    if isinstance(later, Guess):
        return False
    if isinstance(later, Barrier) or isinstance(earlier, Barrier):
        return _is_full(later) or _is_full(earlier)
    return not (isinstance(later, Load) and isinstance(earlier, Store))


def _waits(later: Step, earlier: Step) -> bool:
    """Whether one step of a thread waits for another that comes before it, whatever they access."""
    if isinstance(earlier, Guess):
        return writes(later)
    if isinstance(earlier, Barrier):
        return not isinstance(later, Barrier) and _orders(earlier, later)
    if isinstance(later, Barrier):
        return _orders(later, earlier)
    if _is_full(later) or _is_full(earlier):
        return True
    acquires = isinstance(earlier, Load) and earlier.acquire
    releases = isinstance(later, Store | Add) and later.release
    if acquires or releases:
        return True
    if isinstance(earlier, Store | Add) and earlier.release:
        return isinstance(later, Load) and later.acquire
    return False


class _Run:
    """One way through the branches of each thread."""

    def __init__(
        self,
        names: tuple[str, ...],
        paths: tuple[Path, ...],
        initial: Mapping[str, int],
        processor: Processor,
    ) -> None:
        self._waits = _waits if processor == "aarch64" else _waits_on_x86
        self._names = names
        self._paths = paths
        used = {
            step.place for path in paths for step in path if not isinstance(step, Barrier | Guess)
        }
        self._places = sorted(used | set(initial))
        self._initial = initial

    def explore(self) -> Iterator[Outcome]:
        memory: tuple[_History, ...] = tuple(
            ((self._initial.get(place, 0), (-1, 0)),) for place in self._places
        )
        start: _State = (tuple((None,) * len(path) for path in self._paths), memory)
        seen, waiting = {start}, [start]
        while waiting:
            state = waiting.pop()
            results, memory = state
            if all(None not in one for one in results):
                yield self._outcome(state)
            for thread in range(len(self._paths)):
                for after in self._after(state, thread):
                    if after not in seen:
                        seen.add(after)
                        waiting.append(after)

    def _outcome(self, state: _State) -> Outcome:
        results, memory = state
        found = {place: history[-1][0] for place, history in zip(self._places, memory, strict=True)}
        for name, path, done in zip(self._names, self._paths, results, strict=True):
            for register, value in _registers(path, done).items():
                found[f"{name}: {register}"] = value
        return found

    def _after(self, state: _State, thread: int) -> Iterator[_State]:
        """The states to which one step of a thread leads."""
        results, memory = state
        path, done = self._paths[thread], results[thread]
        registers = _registers(path, done)
        ready = [
            number
            for number in range(len(path))
            if done[number] is None and _ready(path, done, number, registers, self._waits)
        ]
        # to wait with these leads nowhere else
        at_once = [number for number in ready if isinstance(path[number], Barrier | Guess)]
        for number in at_once[:1] or ready:
            step, result, changed = path[number], _DONE, memory
            if isinstance(step, Guess):
                if (registers[step.register] == step.value) != step.equal:
                    return  # so the thread does not come this way
            elif not isinstance(step, Barrier):
                place = self._places.index(step.place)
                result, history = _perform(path, done, thread, number, registers, memory[place])
                if not _coherent(path, done, number, result, history):
                    continue
                changed = (*memory[:place], history, *memory[place + 1 :])
            own = (*done[:number], result, *done[number + 1 :])
            yield (*results[:thread], own, *results[thread + 1 :]), changed


def _registers(path: Path, done: _Results) -> dict[str, int]:
    return {
        step.into: result[0]
        for step, result in zip(path, done, strict=True)
        if isinstance(step, Load | Exchange) and result is not None
    }


def _needs(step: Step) -> tuple[str, ...]:
    """Registers without which it cannot be carried out."""
    if isinstance(step, Guess):
        return (step.register,)
    needed = step.after if isinstance(step, Load | Store) else ()
    if isinstance(step, Store) and isinstance(step.value, str):
        needed += (step.value,)
    return needed


def _ready(
    path: Path,
    done: _Results,
    number: int,
    registers: Mapping[str, int],
    waits: Callable[[Step, Step], bool],
) -> bool:
    step = path[number]
    if any(register not in registers for register in _needs(step)):
        return False
    for before in range(number):
        earlier = path[before]
        if done[before] is not None:
            continue
        if waits(step, earlier):
            return False
        if isinstance(earlier, Barrier | Guess) or isinstance(step, Barrier | Guess):
            continue
        addresses = earlier.after if isinstance(earlier, Load | Store) else ()
        if writes(step) and any(register not in registers for register in addresses):
            return False
        if step.place == earlier.place and (
            writes(step)
            or isinstance(earlier, Add | Exchange)
            or (isinstance(earlier, Store) and any(r not in registers for r in _needs(earlier)))
        ):
            return False
    return True


def _perform(
    path: Path,
    done: _Results,
    thread: int,
    number: int,
    registers: Mapping[str, int],
    history: _History,
) -> tuple[_Result, _History]:
    """What an access gives, and the history of its place after it."""
    step, write = path[number], (thread, number)
    last, source = history[-1]
    if isinstance(step, Load):
        for before in reversed(range(number)):
            own = path[before]
            if isinstance(own, Store) and own.place == step.place and done[before] is None:
                return (_value(own, registers), (thread, before)), history
        return (last, source), history
    if isinstance(step, Exchange):
        return (last, source), (*history, (step.value, write))
    if isinstance(step, Add):
        return _DONE, (*history, (last + step.amount, write))
    assert isinstance(step, Store)
    return _DONE, (*history, (_value(step, registers), write))


def _value(store: Store, registers: Mapping[str, int]) -> int:
    return registers[store.value] if isinstance(store.value, str) else store.value


def _coherent(
    path: Path,
    done: _Results,
    number: int,
    result: _Result,
    history: _History,
) -> bool:
    """Whether the thread's loads of one place have read stores in the order that all see."""
    step = path[number]
    if not isinstance(step, Load):
        return True
    order = [write for _value, write in history]

    def position(write: _Write | None) -> int:
        return order.index(write) if write in order else len(order)  # its own, not seen yet

    for other, found in enumerate(done):
        earlier = path[other]
        if not isinstance(earlier, Load) or found is None or earlier.place != step.place:
            continue
        mine, theirs = position(result[1]), position(found[1])
        if (theirs > mine) if other < number else (mine > theirs):
            return False
    return True

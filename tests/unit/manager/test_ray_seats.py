"""Who asks Ray for a place, what it waits for, and what becomes of a place that is gone."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

from hostler.core.deployment import Deployment
from hostler.core.errors import BadRequest, PlacementUnavailable
from hostler.core.hosts import HostFacts, Role
from hostler.core.model import WorkerType
from hostler.core.placing import Held, Needs, NodeView, PlaceView, Seat, read_needs
from hostler.core.runtime_env import RuntimeEnv, read_runtime_env
from hostler.manager.placement import Unplaced
from hostler.manager.ray_seats import KEEP_EVERY_S, LOOK_AT_PLACES_S, Invitation, RaySeats, Seated
from hostler.registry.host import Host

NEEDS = Needs(cpus=2, resources={"box": 1})


class PaperRay:
    """A cluster that does as the test says, in the place of Ray."""

    address = "paper"

    def __init__(self) -> None:
        self.is_away = False
        self.free: dict[str, dict[str, float]] = {"n1": {"CPU": 4, "box": 1}}
        self.held: dict[str, PlaceView] = {}
        self.asked: list[tuple[str, str]] = []
        self.kept: list[str] = []
        self.connects = 0

    def _answer(self) -> None:
        if self.is_away:
            raise PlacementUnavailable("Ray at 'paper' does not answer")

    async def connect(self) -> None:
        self._answer()
        self.connects += 1

    async def nodes(self) -> tuple[NodeView, ...]:
        self._answer()
        return tuple(
            NodeView(node_id=name, address=f"10.0.0.{name[1]}", is_alive=True, free=free)
            for name, free in self.free.items()
        )

    async def reserve(
        self,
        place_id: str,
        needs: Needs,
        labels: Mapping[str, str],
        node_id: str = "",
        env: RuntimeEnv | None = None,
    ) -> None:
        self._answer()
        if env is not None and env.working_dir == "/nowhere":
            raise BadRequest("there is no folder /nowhere")
        self.asked.append((place_id, node_id))
        self.held.setdefault(place_id, PlaceView(place_id=place_id))

    def place(self, place_id: str) -> PlaceView:
        return self.held.get(place_id, PlaceView(place_id=place_id, is_gone=True))

    async def look(self, place_id: str) -> PlaceView:
        return self.place(place_id)

    async def release(self, place_id: str) -> None:
        self._answer()
        self.held.pop(place_id, None)

    async def clear(self, known: Collection[str]) -> None:
        self._answer()
        self.held = {name: held for name, held in self.held.items() if name in known}

    async def keep(
        self, node_id: str, folder: str, arguments: Sequence[str], env: Mapping[str, str]
    ) -> None:
        self.kept.append(node_id)


class Story:
    """Seats over a paper cluster, with a clock by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ray = PaperRay()
        self.hosts: list[Host] = []
        self.seated: list[Seated] = []
        self.lost: list[str] = []
        self.is_silent = False  # the host of what is lost
        self.failed: list[str] = []
        self.invited: list[str] = []
        self.seats = RaySeats(
            self.ray,
            hosts=lambda: self.hosts,
            seated=lambda: self.seated,
            invite=self.invite,
            wake=lambda: None,
            lost=self.lose,
            failed=lambda instance_id, why: self.failed.append(why),
            clock=lambda: self.now_s,
        )

    def lose(self, instance_id: str, why: str) -> bool:
        if not self.is_silent:
            self.lost.append(instance_id)
        return not self.is_silent

    async def invite(self, node: NodeView) -> Invitation:
        self.invited.append(node.node_id)
        return Invitation(("host", "join"), "folder", "token")

    def join(self, node_id: str, host_id: str = "h1") -> None:
        host = Host(host_id, Role.HOST)
        host.facts = HostFacts(name=host_id, labels={"ray.node": node_id})
        host.address = f"10.0.0.{node_id[1]}"
        self.hosts.append(host)

    def run(self, instance_id: str, host_id: str, held: Held = Held()) -> None:  # noqa: B008
        """A controller before this one has placed it."""
        one = Seated(instance_id=instance_id, deployment=model(), host_id=host_id, held=held)
        self.seated.append(one)

    def look(self, pass_s: float = 0.0) -> None:
        self.now_s += pass_s
        asyncio.run(self.seats.look())

    def why(self, instance_id: str = "i1") -> str:
        found = self.seats.seat(instance_id, model())
        return found.reason if isinstance(found, Unplaced) else found.host_id


def model(**changes: Any) -> Deployment:
    values: dict[str, Any] = {
        "name": "m",
        "worker_type": WorkerType.LLM,
        "engine": "fake",
        "resources": NEEDS,
    }
    return Deployment(**(values | changes))


def test_an_instance_gets_the_host_of_the_node_that_ray_found() -> None:
    story = Story()
    assert "2 CPU, 1 box" in story.why()
    story.look()
    story.look()
    assert story.ray.asked == [("i1", "")], "asked for once"
    story.ray.held["i1"] = PlaceView(place_id="i1", node_id="n1")
    assert "host process of Ray node n1" in story.why()
    story.join("n1")
    assert story.why() == "h1"
    assert story.seats.view("i1") == "2 CPU, 1 box: alive"
    story.seats.leave("i1")
    story.look()
    assert story.ray.held == {}


def test_what_waits_says_what_each_node_lacks() -> None:
    story = Story()
    story.ray.free = {"n1": {"CPU": 4}, "n2": {"box": 3, "CPU": 1}}
    story.why()
    story.look()
    assert story.why() == "waits for Ray: 2 CPU, 1 box (10.0.0.1 lacks box; 10.0.0.2 lacks CPU)"
    assert not story.seats.has_room(model())
    assert story.seats.has_room(model(resources=Needs(cpus=1)))


def test_F43_while_ray_is_away_everything_waits_and_nothing_is_lost() -> None:
    story = Story()
    story.why()
    story.look()
    story.ray.is_away = True
    with pytest.raises(PlacementUnavailable):
        story.look()
    story.seats.leave("i1")
    with pytest.raises(PlacementUnavailable):
        story.look()
    assert "i1" in story.ray.held
    story.ray.is_away = False
    story.look()
    assert story.ray.held == {}, "what was to be given back is, once Ray is there again"


def test_a_place_that_is_gone_is_told_once_and_given_back() -> None:
    story = Story()
    story.why()
    story.look()
    story.ray.held["i1"] = PlaceView(place_id="i1", node_id="n1")
    story.look()
    story.ray.held["i1"] = PlaceView(place_id="i1", node_id="n1", is_gone=True, why="killed")
    story.look(LOOK_AT_PLACES_S + 1)
    story.look(LOOK_AT_PLACES_S + 1)
    assert story.lost == ["i1"]
    assert story.ray.held == {}


def test_a_place_that_went_while_its_host_was_silent_is_told_of_when_that_is_back() -> None:
    story = Story()
    story.why()
    story.look()
    story.ray.held["i1"] = PlaceView(place_id="i1", node_id="n1", is_gone=True, why="node died")
    story.is_silent = True
    story.look()
    story.look()
    assert story.lost == []
    story.is_silent = False
    story.look()
    assert story.lost == ["i1"]


def test_a_new_controller_asks_for_the_places_of_those_who_are_there_on_their_very_nodes() -> None:
    story = Story()
    story.join("n1", "h1")
    story.join("n9", "h9")
    story.run("i1", "h1", Held(gpus=("1",)))
    story.run("i9", "h9")
    story.run("x", "elsewhere")
    story.ray.held["i1"] = PlaceView(place_id="i1", node_id="n1", gpus=("1",))
    story.look()
    story.look()
    assert story.ray.asked == [("i1", "n1")], "a node that Ray does not know is asked of nobody"
    story.look(LOOK_AT_PLACES_S + 1)
    assert story.lost == [], "its place has lasted, with the GPU that its worker uses"


def test_F43_a_ray_that_was_started_anew_is_joined_anew_and_nobody_moves() -> None:
    story = Story()
    story.join("n1", "h1")
    story.run("i1", "h1")
    story.seats.seat("late", model())
    story.look()
    story.look()
    assert story.ray.asked == [("late", ""), ("i1", "n1")]
    story.ray.held.clear()
    story.ray.free = {"n1b": {"CPU": 4}, "n2b": {"CPU": 4}}  # other nodes on the same machines
    story.look(LOOK_AT_PLACES_S + 1)
    assert story.ray.connects == 2
    assert sorted(story.ray.asked[2:]) == [("i1", "n1b"), ("late", "")], "asked for anew"
    assert story.lost == []
    assert story.ray.kept == ["n2b"], "on the other one its host process goes on"
    story.ray.held["late"] = PlaceView(place_id="late", node_id="n1b")
    assert story.why("late") == "h1"


def test_one_whose_place_is_a_new_one_with_other_gpus_moves() -> None:
    story = Story()
    story.join("n1", "h1")
    story.run("i1", "h1", Held(gpus=("1",)))
    story.look()
    story.ray.held["i1"] = PlaceView(place_id="i1", node_id="n1", gpus=("0",))
    story.look()
    assert story.lost == ["i1"], "the GPU it uses may be another one's by now"
    story.seated = []
    story.look()
    assert story.ray.held == {}


def test_places_that_a_controller_before_this_one_left_are_given_back() -> None:
    story = Story()
    story.join("n1", "h1")
    story.run("i1", "h1")
    story.ray.held = {name: PlaceView(place_id=name, node_id="n1") for name in ("i1", "forgotten")}
    story.look()
    assert list(story.ray.held) == ["i1"]
    story.ray.held["i2"] = PlaceView(place_id="i2", node_id="n1")
    story.look()
    assert "i2" in story.ray.held, "only at the beginning: later nobody else makes any"


def test_the_gpus_that_ray_gave_go_to_the_host_with_the_order() -> None:
    story = Story()
    story.join("n1")
    story.why()
    story.look()
    story.ray.held["i1"] = PlaceView(place_id="i1", node_id="n1", gpus=("0", "3"))
    assert story.seats.seat("i1", model()) == Seat(host_id="h1", held=Held(gpus=("0", "3")))
    assert Held(gpus=("0", "3")).variables()["CUDA_VISIBLE_DEVICES"] == "0,3"
    assert Held(gpus=()).variables()["CUDA_VISIBLE_DEVICES"] == "", "it asked for none"
    assert Held().variables() == {}


def test_an_environment_that_cannot_be_fails_its_instance_and_no_other() -> None:
    story = Story()
    pip = RuntimeEnv(pip=("no-such-thing",))
    story.seats.seat("i1", model(runtime_env=pip))
    story.seats.seat("i2", model(runtime_env=RuntimeEnv(working_dir="/nowhere")))
    story.seats.seat("i3", model())
    story.look()
    assert story.failed == ["there is no folder /nowhere"]
    assert [name for name, _ in story.ray.asked] == ["i1", "i3"]
    found = story.seats.seat("i1", model(runtime_env=pip))
    assert isinstance(found, Unplaced)
    assert found.reason == "waits for Ray: 2 CPU, 1 box, and its environment (no-such-thing)"
    told = "No matching distribution found for no-such-thing"
    story.ray.held["i1"] = PlaceView(place_id="i1", is_gone=True, cannot_be=True, why=told)
    story.look()
    assert story.failed[1] == f"Ray cannot make its environment: {told}"
    assert story.lost == []
    story.look()
    assert list(story.ray.held) == ["i3"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pip": ["--index-url=x"]}, "options of pip"),
        ({"pip": ["x --hash=y"]}, "options of pip"),
        ({"pip": [""]}, "no requirement"),
        ({"pip": ["x\n-r /etc/passwd"]}, "no requirement"),
        ({"env_vars": {"LD_PRELOAD": "x"}}, "not for a model to set"),
        ({"env_vars": {"PATH": "x"}}, "not for a model to set"),
        ({"env_vars": {"A B": "x"}}, "no name of a variable"),
        ({"env_vars": {"A": 1}}, "runtime_env.env_vars"),
        ({"working_dir": "here"}, "an absolute folder"),
        ({"working_dir": "file:///x.zip"}, "an absolute folder"),
        ({"conda": ["x"]}, "there is no rule 'conda'"),
    ],
)
def test_environments_that_cannot_be_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_runtime_env(given)
    assert told in caught.value.message


def test_an_environment_is_made_where_ray_chooses_alone() -> None:
    env = RuntimeEnv(pip=("x==1",), env_vars={"A": "1"}, working_dir="https://h/x.zip")
    assert model(runtime_env=env).runtime_env
    with pytest.raises(BadRequest, match="Ray makes it"):
        model(runtime_env=env, host="b")


def test_bundles_say_which_of_them_finds_no_node() -> None:
    story = Story()
    story.join("n1")
    given = {"bundles": [{"gpus": 1}, {"gpus": 4, "cpus": 1}], "strategy": "STRICT_SPREAD"}
    wide = model(resources=read_needs(given))
    story.ray.free = {"n1": {"CPU": 4, "GPU": 2}, "n2": {"CPU": 1}}
    story.seats.seat("i1", wide)
    story.look()
    found = story.seats.seat("i1", wide)
    assert isinstance(found, Unplaced)
    assert found.reason == (
        "waits for Ray: 2 bundles STRICT_SPREAD (1 GPU; 1 CPU, 4 GPU) (for 1 CPU, 4 GPU: 10.0.0.1 lacks GPU; "
        "10.0.0.2 lacks GPU)"
    )
    assert not story.seats.has_room(wide)
    story.ray.held["i1"] = PlaceView(place_id="i1", node_id="n1", group="ab12ab12", gpus=())
    held = Held(group="ab12ab12")
    assert story.seats.seat("i1", wide) == Seat(host_id="h1", held=held)
    assert held.variables() == {"HOSTLER_RAY_PLACEMENT_GROUP": "ab12ab12"}, (
        "its engine takes the GPUs"
    )
    assert "placement group" in Held(group="../x").problem()


@pytest.mark.parametrize("gpu", ["", "0,1", "-1", "0\n1", "0" * 81, "$(x)"])
def test_what_is_no_gpu_is_told(gpu: str) -> None:
    assert "GPUs" in Held(gpus=("0", gpu)).problem()
    assert "GPUs" in Held(gpus=("0",) * 65).problem()
    assert Held(gpus=("7", "GPU-8a1f-2", "MIG-GPU-1/1/0")).problem() == ""


def test_each_node_has_a_host_process_and_one_that_is_well_is_left_alone() -> None:
    story = Story()
    story.ray.free = {"n1": {}, "n2": {}}
    story.join("n2", "h2")
    story.look()
    story.look(1)
    assert story.ray.kept == ["n1"]
    story.look(KEEP_EVERY_S + 1)
    assert story.ray.kept == ["n1", "n1"], "it has not joined yet: it is looked at again"
    story.join("n1")
    story.look(1)
    story.hosts.clear()  # removed at once
    story.look(KEEP_EVERY_S)
    assert story.invited == ["n1", "n1", "n2"], "with a token of its own, each time"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"cpus": -1}, "need 0 or more"),
        ({"cpu": 1}, "did you mean 'cpus'?"),
        ({"resources": {"box": 0}}, "more than 0 of each"),
        ({"cpus": "two"}, "resources.cpus"),
        ({"bundles": [{"gpus": 1}], "gpus": 1}, "nothing beside them"),
        ({"bundles": [{}]}, "something in each"),
        ({"bundles": [{"gpu": 1}]}, "gpu"),
        ({"bundles": [{"gpus": 1}], "strategy": "WIDE"}, "resources.strategy"),
    ],
)
def test_resources_that_cannot_be_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_needs(given)
    assert told in caught.value.message

"""The invariants of the fault catalogue: id, what is always so, where that is checked.

`load`: by `testing/ledger.py` in every test that asks a server under load. `run`: by `testing/oracle.py`
at the end of every run of a cluster or of an embedded manager, whatever the test is about.
"""

INVARIANTS: tuple[tuple[str, str, str], ...] = (
    ("I01", "each request has exactly one access line and one outcome", "load"),
    ("I02", "what the client saw is what the log says; no silent end", "load"),
    ("I03", "the bytes are the engine's own answer to this request", "load"),
    ("I04", "no request is answered by another model", "load"),
    ("I05", "a loss costs no request without a forwarded byte", "load"),
    ("I06", "executions a request are bounded", "load"),
    ("I07", "a 4xx and a client that left count against nobody", "load"),
    ("I11", "everything in flight returns to 0", "load"),
    ("I16", "no process is left, no child unreaped", "run; also after each module of tests"),
    ("I17", "never two live engines for one place", "run, from 20 looks a second at /proc"),
    ("I18", "no engine ends because a controller or gateway did", "run; tests of F25"),
    (
        "I19",
        "only our own processes are signalled",
        "run, by a bystander with a like tag; tests of F17",
    ),
    ("I20", "each start and stop ends in time, no state is a trap", "run; tests of F12, F13"),
    ("I21", "after any crash the wishes are fulfilled", "run; the 5 s in tests of F76"),
    (
        "I22",
        "acknowledged writes survive, refused ones leave no trace",
        "run; kills: `integration/storage/test_admin_writes.py`",
    ),
    ("I23", "the gateway has what the controller says", "run; frozen without one: tests of F22"),
    (
        "I24",
        "routable: verified in this epoch, probe good, not draining",
        "run; tests/unit/routing",
    ),
    ("I25", "bounds of detection", "tests of F01, F03, F19; `make bench` prints them"),
    ("I26", "no false death", "tests of F22, F23, F24, F33"),
    ("I27", "epochs only grow, old messages change nothing", "run; tests of F29, F30"),
    ("I28", "all indexes of the registry name the same instances", "run; tests of F29"),
    (
        "I29",
        "jumps of the wall clock change nothing",
        "tests of F34; `tests/test_tidy.py` (no wall clock)",
    ),
    ("I30", "a live name means exactly one model", "run; tests of F68, F69"),
)

/* Direct: the compiled form of Pump and Watch in hostler/wire/direct.py, whose text says what they do.

   One call of the event loop for all streams that have news: each read is looked at and sent on, without an
   object made. Whatever is not plain goes back to Python, with all bytes not yet sent.
*/
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <string.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CAP = 65536, HEX_MAX = 6, TEXT_MAX = 64, EVENTS = 64, READS = 8 };
enum { GONE = EPOLLRDHUP | EPOLLHUP | EPOLLERR };

typedef struct {
    PyObject_HEAD
    int from, to;
    PyObject *head, *tail;   /* bytes: of a chunk, before its text and after it */
    PyObject *marks;         /* tuple of bytes: what has one of them is not plain */
    PyObject *give_back;     /* called with (unsent, rest) */
    char *pending;           /* the beginning of a chunk */
    Py_ssize_t pending_size;
    long long chunks;
    char heard;
    char is_watched;
} Pump;

typedef struct {
    PyObject_HEAD
    int epoll;
} Watch;

static char buffer[CAP]; /* one loop, one thread: what is kept is copied */

static int hex_of(unsigned char byte)
{
    if (byte >= '0' && byte <= '9') return byte - '0';
    byte |= 0x20;
    return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

/* Length of the whole chunk at `data`; 0: more of it must come; -1: it is none that ends with an event.
   *start: where its data begins. */
static Py_ssize_t chunk_at(const char *data, Py_ssize_t size, Py_ssize_t *start)
{
    Py_ssize_t number = 0, at = 0;
    if (size && data[0] == '0') return -1; /* the last one, or one whose size begins with 0 */
    while (at < size && at < HEX_MAX) {
        int digit = hex_of((unsigned char)data[at]);
        if (digit < 0) break;
        number = number * 16 + digit;
        at++;
    }
    if (at == size) return 0;
    if (!at || data[at] != '\r' || number < 2 || at + number + 4 > CAP) return -1;
    if (at + 1 < size && data[at + 1] != '\n') return -1;
    Py_ssize_t end = at + number + 4;
    if (end > size) return 0;
    *start = at + 2;
    return memcmp(data + end - 4, "\n\n\r\n", 4) ? -1 : end;
}

static int is_like_last(const Pump *self, const char *data, Py_ssize_t size)
{
    Py_ssize_t head = PyBytes_GET_SIZE(self->head), tail = PyBytes_GET_SIZE(self->tail);
    Py_ssize_t text = size - head - tail;
    if (!tail || text < 1 || text > TEXT_MAX) return 0;
    if (memcmp(data, PyBytes_AS_STRING(self->head), head)) return 0;
    if (memcmp(data + size - tail, PyBytes_AS_STRING(self->tail), tail)) return 0;
    for (Py_ssize_t at = head; at < head + text; at++)
        if ((unsigned char)data[at] < 0x20 || data[at] == '"') return 0;
    return 1;
}

static int has_mark(const Pump *self, const char *data, Py_ssize_t size)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->marks); i++) {
        PyObject *mark = PyTuple_GET_ITEM(self->marks, i);
        if (memmem(data, size, PyBytes_AS_STRING(mark), PyBytes_GET_SIZE(mark))) return 1;
    }
    return 0;
}

/* Where the whole and plain chunks end; *chunks: how many they are. -1: one is not plain. */
static Py_ssize_t plain_until(const Pump *self, Py_ssize_t size, long long *chunks)
{
    Py_ssize_t at = 0, start = 0;
    while (at < size) {
        Py_ssize_t length = chunk_at(buffer + at, size - at, &start);
        if (length < 0) return -1;
        if (!length) break;
        const char *data = buffer + at + start;
        Py_ssize_t rest = length - start;
        if (!is_like_last(self, data, rest) && has_mark(self, data, rest)) return -1;
        at += length;
        ++*chunks;
    }
    return at;
}

/* What a read came to: more may be there, all was taken, or Python has the rest (or an exception). */
typedef enum { MORE, DRY, OVER, FAILED } Fate;

static Fate give_back(Pump *self, const char *unsent, Py_ssize_t unsent_size, const char *rest, Py_ssize_t size)
{
    self->pending_size = 0;
    PyObject *done = PyObject_CallFunction(self->give_back, "y#y#", unsent, unsent_size, rest, size);
    Py_XDECREF(done);
    return done ? OVER : FAILED;
}

static Fate read_once(Pump *self)
{
    Py_ssize_t room = CAP - self->pending_size;
    if (self->pending_size) memcpy(buffer, self->pending, self->pending_size);
    Py_ssize_t got = recv(self->from, buffer + self->pending_size, room, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) return MORE;
    if (got < 0 && errno == EAGAIN) return DRY;
    if (got <= 0) return give_back(self, "", 0, buffer, self->pending_size);
    Py_ssize_t size = self->pending_size + got;
    long long chunks = 0;
    self->heard = 1;
    Py_ssize_t end = plain_until(self, size, &chunks);
    if (end < 0 || (!end && size == CAP)) return give_back(self, "", 0, buffer, size);
    Py_ssize_t sent = end ? send(self->to, buffer, end, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    if (sent < 0) sent = 0; /* whatever it is: the loop's own writing finds out */
    self->chunks += chunks;
    if (sent < end) return give_back(self, buffer + sent, end - sent, buffer + end, size - end);
    self->pending_size = size - end;
    if (self->pending_size) {
        char *kept = PyMem_Realloc(self->pending, self->pending_size);
        if (!kept) return give_back(self, "", 0, buffer + end, size - end);
        self->pending = kept;
        memcpy(kept, buffer + end, self->pending_size);
    }
    return got == room ? MORE : DRY;
}

static PyObject *pump(Pump *self, PyObject *Py_UNUSED(none))
{
    if (read_once(self) == FAILED) return NULL;
    Py_RETURN_NONE;
}

static int init(Pump *self, PyObject *args, PyObject *Py_UNUSED(named))
{
    PyObject *head, *tail, *marks, *back;
    if (!PyArg_ParseTuple(args, "iiSSO!O", &self->from, &self->to, &head, &tail, &PyTuple_Type, &marks, &back))
        return -1;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(marks); i++)
        if (!PyBytes_Check(PyTuple_GET_ITEM(marks, i))) {
            PyErr_SetString(PyExc_TypeError, "marks: need bytes");
            return -1;
        }
    Py_XSETREF(self->head, Py_NewRef(head));
    Py_XSETREF(self->tail, Py_NewRef(tail));
    Py_XSETREF(self->marks, Py_NewRef(marks));
    Py_XSETREF(self->give_back, Py_NewRef(back));
    return 0;
}

static int traverse(Pump *self, visitproc visit, void *arg)
{
    Py_VISIT(self->give_back);
    return 0;
}

static int clear(Pump *self)
{
    Py_CLEAR(self->give_back);
    return 0;
}

static void dealloc(Pump *self)
{
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->head);
    Py_CLEAR(self->tail);
    Py_CLEAR(self->marks);
    Py_CLEAR(self->give_back);
    PyMem_Free(self->pending);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef methods[] = {
    {"pump", (PyCFunction)pump, METH_NOARGS, "Take one read and send it on."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"chunks", T_LONGLONG, offsetof(Pump, chunks), 0, "sent on"},
    {"heard", T_BOOL, offsetof(Pump, heard), 0, "something came"},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject PumpType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "hostler.wire._direct.Pump",
    .tp_basicsize = sizeof(Pump),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)init,
    .tp_dealloc = (destructor)dealloc,
    .tp_traverse = (traverseproc)traverse,
    .tp_clear = (inquiry)clear,
    .tp_methods = methods,
    .tp_members = members,
};

static int watch_init(Watch *self, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(named))
{
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (self->epoll >= 0) return 0;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static void watch_dealloc(Watch *self)
{
    if (self->epoll > 0) close(self->epoll);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *watch_fileno(Watch *self, PyObject *Py_UNUSED(none)) { return PyLong_FromLong(self->epoll); }

static int control(Watch *self, int what, PyObject *pump)
{
    if (!PyObject_TypeCheck(pump, &PumpType)) {
        PyErr_SetString(PyExc_TypeError, "need a Pump");
        return -1;
    }
    /* told of news once: what has none is not looked at again, unlike by the loop's own epoll */
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = pump};
    if (epoll_ctl(self->epoll, what, ((Pump *)pump)->from, &event) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

/* Whoever adds a pump keeps it until it is removed. */
static PyObject *watch_add(Watch *self, PyObject *pump)
{
    if (control(self, EPOLL_CTL_ADD, pump) < 0) return NULL;
    ((Pump *)pump)->is_watched = 1;
    Py_RETURN_NONE;
}

static PyObject *watch_remove(Watch *self, PyObject *pump)
{
    if (control(self, EPOLL_CTL_DEL, pump) < 0) return NULL;
    ((Pump *)pump)->is_watched = 0;
    Py_RETURN_NONE;
}

static PyObject *watch_run(Watch *self, PyObject *Py_UNUSED(none))
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(self->epoll, events, EVENTS, 0);
    for (int i = 0; i < count; i++) Py_INCREF((PyObject *)events[i].data.ptr); /* one may end another */
    for (int i = 0; i < count; i++) {
        Pump *one = events[i].data.ptr;
        Fate fate = MORE;
        int reads = 0;
        while (one->is_watched && fate == MORE && reads++ < READS) {
            fate = read_once(one);
            if (fate == DRY && events[i].events & GONE) {
                events[i].events &= ~GONE; /* once more, for its end */
                fate = MORE;
            }
        }
        if (fate == FAILED) PyErr_WriteUnraisable((PyObject *)one);
        if (fate == MORE && one->is_watched && control(self, EPOLL_CTL_MOD, (PyObject *)one) < 0)
            PyErr_WriteUnraisable((PyObject *)one); /* the others first: it is told of again */
        Py_DECREF(one);
    }
    Py_RETURN_NONE;
}

static PyMethodDef watch_methods[] = {
    {"fileno", (PyCFunction)watch_fileno, METH_NOARGS, "What the loop watches: readable when a pump has news."},
    {"add", (PyCFunction)watch_add, METH_O, "Watch what a pump reads from."},
    {"remove", (PyCFunction)watch_remove, METH_O, "Watch it no more."},
    {"run", (PyCFunction)watch_run, METH_NOARGS, "Pump all that have news."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject WatchType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "hostler.wire._direct.Watch",
    .tp_basicsize = sizeof(Watch),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)watch_init,
    .tp_dealloc = (destructor)watch_dealloc,
    .tp_methods = watch_methods,
};

static PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "hostler.wire._direct", .m_size = -1};

PyMODINIT_FUNC PyInit__direct(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddType(made, &PumpType) < 0 || PyModule_AddType(made, &WatchType) < 0)) Py_CLEAR(made);
    return made;
}

"""A control plane on this machine's loopback, and pgset beside it as a process: the release binary with its own service account,
its own certificates and the configuration that it ships. Only the way to it differs: without a network of pods, the Service is an alias of localhost."""

import base64
import http.client
import json
import socket
import ssl
import threading
from urllib.parse import urlsplit

from tools import TOP, WORK, Process, run, wait_for

SYSTEM = "pgset-system"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def answers(port, path="/readyz", tls=False):
    """Whether a server on this machine answers 200."""
    try:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=2, context=ssl._create_unverified_context()) \
            if tls else http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False


class ControlPlane:
    """etcd, kube-apiserver and kube-controller-manager, for as long as the `with` lasts."""

    def __init__(self, name="control-plane"):
        self.folder = WORK / name
        self.kubeconfig = self.folder / "kubeconfig"

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        run(TOP / "tests/lab/control-plane", "down", self.folder, check=False)
        try:
            run(TOP / "tests/lab/control-plane", "up", self.folder, limit=3600)
            config = json.loads(self.kubectl("config", "view", "--raw", "--output=json"))
        except BaseException:
            self.__exit__()
            raise
        self.server = config["clusters"][0]["cluster"]["server"]
        self.authority = config["clusters"][0]["cluster"]["certificate-authority-data"]
        self.token = config["users"][0]["user"]["token"]
        return self

    def __exit__(self, *_):
        run(TOP / "tests/lab/control-plane", "down", self.folder, check=False)

    def kubectl(self, *words, text=None, check=True):
        return run("kubectl", "--kubeconfig", self.kubeconfig, *words, text=text, check=check)

    def create(self, *objects):
        self.kubectl("create", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def client(self):
        return Client(self)

    def kubeconfig_of(self, namespace, account):
        """A kubeconfig with a service account's token."""
        token = self.kubectl("--namespace", namespace, "create", "token", account, "--duration=8h")
        path = self.folder / f"{account}.kubeconfig"
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": self.server, "certificate-authority-data": self.authority}}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}]}), encoding="utf-8")
        path.chmod(0o600)
        return path


class Client:
    """One keep-alive connection to the API server."""

    def __init__(self, plane):
        url = urlsplit(plane.server)
        context = ssl.create_default_context(cadata=base64.b64decode(plane.authority).decode())
        self.connection = http.client.HTTPSConnection(url.hostname, url.port, timeout=60, context=context)
        self.headers = {"Authorization": f"Bearer {plane.token}", "Content-Type": "application/json", "Accept": "application/json"}

    def ask(self, method, path, body=None):
        self.connection.request(method, path, body=body, headers=self.headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def post(self, path, body, accepted=(200, 201)):
        status, answer = self.ask("POST", path, body)
        if status not in accepted:
            raise SystemExit(f"bench: POST {path}: {status} {answer[:1000]!r}")
        return answer


def post_all(plane, requests, connections=8, user=None):
    """Posts many objects over a few connections at once, as somebody else if that is said."""
    requests, lock, failures = iter(requests), threading.Lock(), []

    def work():
        client = plane.client()
        if user:
            client.headers["Impersonate-User"] = user
        try:
            while not failures:
                with lock:
                    request = next(requests, None)
                if request is None:
                    return
                path, body = request
                client.post(path, json.dumps(body))
        except BaseException as failure:  # told by the thread that waits
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def install(plane, binary, https_port, webhook=True):
    """pgset's own manifests, as a process on this machine can serve them."""
    plane.kubectl("apply", "-f", "-", text=run(binary, "install"))
    shipped = json.loads(plane.kubectl("--namespace", SYSTEM, "get", "deployment", "pgset-controller", "--output=json"))
    plane.environment = {it["name"]: it["value"] for it in shipped["spec"]["template"]["spec"]["containers"][0].get("env", []) if "value" in it}
    plane.kubectl("--namespace", SYSTEM, "delete", "deployment", "pgset-webhook", "pgset-controller")
    plane.kubectl("--namespace", SYSTEM, "delete", "service", "pgset-webhook")
    plane.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pgset-webhook", "namespace": SYSTEM},
                  "spec": {"type": "ExternalName", "externalName": "localhost"}})
    if webhook:
        plane.kubectl("patch", "mutatingwebhookconfiguration", "pgset", "--type=json", "--patch",
                      json.dumps([{"op": "replace", "path": "/webhooks/0/clientConfig/service/port", "value": https_port}]))
    else:
        plane.kubectl("delete", "mutatingwebhookconfiguration", "pgset")


def serve(plane, binary, https_port, http_port, name="pgset"):
    """`pgset serve webhook`, with the rights that it has in a cluster."""
    kubeconfig = plane.kubeconfig_of(SYSTEM, "pgset-webhook")
    return Process(name, binary, "serve", "webhook", f"--https-port={https_port}", f"--http-port={http_port}", "--health-port=0",
                   env={"KUBECONFIG": str(kubeconfig), **plane.environment})


def serve_controller(plane, binary, http_port, name="pgset"):
    """`pgset serve controller`, likewise."""
    kubeconfig = plane.kubeconfig_of(SYSTEM, "pgset-controller")
    return Process(name, binary, "serve", "controller", f"--health-port={http_port}",
                   env={"KUBECONFIG": str(kubeconfig), **plane.environment})


def wait_ready(process, http_port, limit=60):
    return process.ready(limit, lambda: answers(http_port))


def wait_discovered(plane, path, what):
    """Until the API server serves a resource."""
    client = plane.client()
    wait_for(60, what, lambda: client.ask("GET", path)[0] == 200)

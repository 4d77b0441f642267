"""django-oauth-toolkit (PyPI) as an authorization server over HTTPS on a port of the kernel's choice.

It prints "port N"; every answered token request is a line in the file of requests:
"token CONTENT-TYPE AUTHORIZATION-SCHEME STATUS".
"""

import pathlib
import ssl
import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server

import django
from django.conf import settings

body, certificate, key, client_id, secret_file, requests, database = sys.argv[1:]
settings.configure(
    ALLOWED_HOSTS=["localhost"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": database}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "oauth2_provider"],
    # As every Django project has it: it gives each answer its Content-Length. wsgiref ends TLS without close_notify,
    # and what only the connection's end delimits is then incomplete (RFC 9112 section 9.8).
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    OAUTH2_PROVIDER={
        "OAUTH2_BACKEND_CLASS": "oauth2_provider.oauth2_backends."
        + {"form": "OAuthLibCore", "json": "JSONOAuthLibCore"}[body],
        "SCOPES": {"ledger:read": "read", "ledger:write": "write"},
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY="of no use here",
    USE_TZ=True,
)
django.setup()

from django.core.handlers.wsgi import WSGIHandler  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.http import HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from oauth2_provider.models import AccessToken, get_application_model  # noqa: E402
from oauth2_provider.decorators import protected_resource  # noqa: E402
from oauth2_provider.views import TokenView  # noqa: E402


@protected_resource(scopes=["ledger:read"])
def api(request):
    """An API that lets the toolkit judge the token it was shown."""
    token = AccessToken.objects.get(token=request.headers["Authorization"].removeprefix("Bearer "))
    return HttpResponse(f"{token.application.client_id} {token.scope}\n")


urlpatterns = [path("token", TokenView.as_view()), path("api", api)]


def counted(application):
    def answer(environ, start_response):
        def start(status, headers, exc_info=None):
            if environ["PATH_INFO"] == "/token":
                content_type = environ.get("CONTENT_TYPE", "").split(";")[0] or "none"
                scheme = environ.get("HTTP_AUTHORIZATION", "none").split(" ")[0]
                with open(requests, "a") as lines:
                    print("token", content_type, scheme, status.split(" ")[0], file=lines)
            return start_response(status, headers, exc_info)

        return application(environ, start)

    return answer


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


call_command("migrate", verbosity=0)
application = get_application_model()
for method in ("post", "basic"):
    application.objects.create(
        authorization_grant_type=application.GRANT_CLIENT_CREDENTIALS,
        client_id=f"{client_id}-{method}",
        client_secret=pathlib.Path(secret_file).read_text(),
        client_type=application.CLIENT_CONFIDENTIAL,
        name=method,
    )
with make_server("localhost", 0, counted(WSGIHandler()), handler_class=Quiet) as server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    # Handshakes happen at the first read: a client that only connects does not stop the server.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    # The toolkit compares a token's resource with the URL it is used at, scheme included.
    server.base_environ["HTTPS"] = "on"
    print("port", server.server_port, flush=True)
    server.serve_forever()

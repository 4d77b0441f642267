# a secret file with wrong modes is one profile's trouble, and says how to mend it
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

clean_slate
secret bloom "$first_secret"
secret_file partner "$first_secret"
chmod 0644 /srv/secrets/partner
configure "$(profile bloom 'allow = ["user:alice"]')" \
    "$(profile partner 'client_secret.file = "/srv/secrets/partner"' 'allow = ["user:alice"]')"
systemctl start bloom-agent.service

ends 0 as alice loans bloom-agent-cli token bloom
within 5 status_says partner
has 'chmod 600 /srv/secrets/partner' "$(status_text)"
ends 1 as alice loans "$clients/get_token.py" partner
is 'UNAVAILABLE SECRET_UNREADABLE' "$err" 'what the caller of partner was told'
ends 75 as alice loans bloom-agent-cli token partner
ends 78 bloom-agent check
has 'chmod 600 /srv/secrets/partner' "$err"

# The command as it is printed, and nothing else: the agent watches the file.
requests=$(issuer requests)
bash -c "$(grep -o 'chmod 600 /srv/secrets/partner' <<<"$err")"
ends 0 as alice loans bloom-agent-cli token partner --wait
is $((requests + 1)) "$(issuer requests)" 'token requests'
ends 0 bloom-agent check

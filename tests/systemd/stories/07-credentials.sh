# credentials of systemd, encrypted too; a new secret by a restart, or beforehand
# shellcheck shell=bash source=tests/systemd/words.sh
. /opt/tests/words.sh

one_profile

# At rest only the host's key can read it.
systemd-creds encrypt --name=bloom "$secrets/bloom" "$secrets/bloom.cred" 2>/dev/null
ends 1 grep -q "$first_secret" "$secrets/bloom.cred"
rm "$secrets/bloom"
drop_in bloom "LoadCredentialEncrypted=bloom:$secrets/bloom.cred"
systemctl restart bloom-agent.service
before=$(generation bloom)
bloom-agent-cli refresh bloom
[[ $(generation bloom) != "$before" ]] || die 'no token by the encrypted credential'

# The provider has a new secret: the old token is served, and a restart with the new one in place is tried at once.
issuer secrets canary-of-the-second-secret
ends 75 bloom-agent-cli refresh bloom
within 5 status_says refused
before=$(generation bloom)
secret bloom canary-of-the-second-secret
requests=$(issuer requests)
systemctl restart bloom-agent.service
issuer await $((requests + 1))
replaced() { [[ $(generation bloom) != "$before" ]]; }
within 5 replaced
is $((requests + 1)) "$(issuer requests)" 'token requests'

# Or the new secret is there beforehand, and no call ever waits.
secret bloom-next canary-of-the-third-secret
configure "$(profile bloom 'client_secret.credential = "bloom"' 'client_secret_next.credential = "bloom-next"')"
systemctl restart bloom-agent.service
issuer secrets canary-of-the-third-secret
before=$(generation bloom)
bloom-agent-cli refresh bloom
replaced || die 'the next secret was not tried'

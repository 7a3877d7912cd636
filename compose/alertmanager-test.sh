#!/bin/sh
# What compose/alertmanager.sh makes of its variables, and who is told what then. ./scripts/test static
# runs it in Alertmanager's image.
set -eu
export SECRETS=/tmp/secrets
mkdir -p $SECRETS
status=0

fail() {
  echo "FAIL  $*"
  status=1
}

# makes VARIABLE=VALUE…: amtool accepts the configuration, which is in /tmp/made then.
makes() {
  what="$*"
  env "$@" sh /etc/alertmanager/start --print >/tmp/made 2>/tmp/said || fail "$what: $(cat /tmp/said)"
  amtool check-config /tmp/made >/tmp/said 2>&1 || fail "$what: $(cat /tmp/said /tmp/made)"
}

# refuses TEXT VARIABLE=VALUE…: it does not start, and says so.
refuses() {
  text=$1 && shift
  ! env "$@" sh /etc/alertmanager/start --print >/dev/null 2>/tmp/said || fail "$*: taken; want it refused"
  grep -qF -- "$text" /tmp/said || fail "$*: it says '$(cat /tmp/said)'; want '$text' in it"
}

# has N TEXT: the configuration has so many lines with the text.
has() { [ "$(grep -cF -- "$2" /tmp/made)" = "$1" ] || fail "$what: want $1 times '$2' in $(cat /tmp/made)"; }

# tells RECEIVER LABEL=VALUE…
tells() {
  receiver=$1 && shift
  amtool config routes test --config.file=/tmp/made --verify.receivers="$receiver" "$@" >/tmp/said 2>&1 ||
    fail "$*: it goes to $(cat /tmp/said); want $receiver"
}

# Nothing given: nobody is told.
makes A=
has 0 _configs:
has 0 ALERT_
tells watchdog alertname=Watchdog severity=none
tells critical alertname=KafkaBrokerDown severity=critical
tells warning alertname=TargetDown severity=warning
tells warning alertname=OfAnotherFile
tells nobody alertname=KafkaPreferredLeaderImbalance severity=info

makes ALERT_WEBHOOK_URL=http://example.org/?a=1\&b=it\'s
has 2 "url: 'http://example.org/?a=1&b=it''s'"
has 0 email_configs:
makes ALERT_CRITICAL_WEBHOOK_URL=https://pager.example.org/
has 1 https://pager.example.org/
makes ALERT_WATCHDOG_URL=https://watchdog.example.org/
has 1 webhook_configs:
mail="ALERT_MAIL_TO=a@example.org,b@example.org ALERT_MAIL_FROM=p@example.org ALERT_SMTP_HOST=mail.example.org:587"
# shellcheck disable=SC2086 # several words
makes $mail
has 2 "to: 'a@example.org,b@example.org'"
has 0 smtp_auth
has 1 'smtp_require_tls: true'
# shellcheck disable=SC2086
makes $mail ALERT_SMTP_TLS=false
has 1 'smtp_require_tls: false'

printf 'https://secret.example.org/a%%2Fb\n' >$SECRETS/webhook_url # as an editor leaves it
printf 'pass: "word'\''\n' >$SECRETS/smtp_password
# shellcheck disable=SC2086
makes $mail ALERT_SMTP_HOST=mail.example.org:465 ALERT_SMTP_USER=postamt ALERT_CRITICAL_WEBHOOK_URL=http://pager/ \
  ALERT_WATCHDOG_URL=http://watchdog/ ALERT_REPEAT_CRITICAL=10m ALERT_REPEAT_WARNING=1d12h
has 2 "url: 'https://secret.example.org/a%2Fb'"
has 1 "smtp_auth_password: 'pass: \"word'''"
has 1 'smtp_require_tls: false'
has 1 'repeat_interval: 10m'
has 1 'repeat_interval: 1d12h'
has 5 'send_resolved: true'
refuses "both ALERT_WEBHOOK_URL and secrets/alertmanager/webhook_url are there" ALERT_WEBHOOK_URL=http://a/
echo secret-without-scheme >$SECRETS/webhook_url
refuses "ALERT_WEBHOOK_URL, in secrets/alertmanager/webhook_url, is no URL; it must begin with http:// or https://" A=
! grep -q secret-without-scheme /tmp/said || fail "what is secret is shown: $(cat /tmp/said)"
chmod 000 $SECRETS
refuses "secrets/alertmanager (ALERT_SECRETS) cannot be read: chmod 755 it" A=
chmod 700 $SECRETS
rm -r $SECRETS

# A configuration of one's own is not touched.
printf 'route: { receiver: ALERT_REPEAT_WARNING }\nreceivers:\n  - name: ALERT_REPEAT_WARNING\n' >/tmp/own
makes BASE=/tmp/own ALERT_WEBHOOK_URL=http://example.org/
cmp /tmp/own /tmp/made || fail "$what: $(cat /tmp/made)"

refuses "ALERT_WATCHDOG_URL is no URL; it must begin with http:// or https://" ALERT_WATCHDOG_URL=example.org
refuses "ALERT_REPEAT_CRITICAL is 'often'; it must be a duration such as 1h" ALERT_REPEAT_CRITICAL=often
refuses "ALERT_REPEAT_WARNING is '12'; it must be a duration such as 12h" ALERT_REPEAT_WARNING=12
for wrong in 0s 1hh 1m1h 1h30 -1h; do
  refuses "ALERT_REPEAT_WARNING is '$wrong'; it must be a duration such as 12h" ALERT_REPEAT_WARNING=$wrong
done
refuses "it must be a mail server with its port" ALERT_MAIL_TO=a@example.org ALERT_MAIL_FROM=p@example.org ALERT_SMTP_HOST=mail.example.org
refuses "ALERT_MAIL_FROM is empty" ALERT_MAIL_TO=a@example.org ALERT_SMTP_HOST=mail.example.org:587
refuses "ALERT_MAIL_TO is empty" ALERT_SMTP_HOST=mail.example.org:587
# shellcheck disable=SC2086
refuses "its password belongs into secrets/alertmanager/smtp_password" $mail ALERT_SMTP_USER=postamt
mkdir $SECRETS && echo pass >$SECRETS/smtp_password
# shellcheck disable=SC2086
refuses "sends no password without TLS" $mail ALERT_SMTP_USER=postamt ALERT_SMTP_TLS=false
# shellcheck disable=SC2086
refuses "ALERT_SMTP_TLS is 'yes'; it must be true or false" $mail ALERT_SMTP_TLS=yes
exit $status

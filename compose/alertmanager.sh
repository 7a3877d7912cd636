#!/bin/sh
# Runs Alertmanager, which expands no variables itself, with the receivers that variables and
# secrets/alertmanager/ name (.env.example). With --print it only prints the configuration.
#
# A configuration that has receivers of its own is taken as it is.
set -eu
umask 077 # the configuration has URLs and the password in it

base=${BASE:-/etc/alertmanager/alertmanager.yml}
secrets=${SECRETS:-/run/secrets}
bad=

wrong() {
  echo "alertmanager: $*" >&2
  bad=1
}

# secret NAME prints the file, without what an editor adds at its end.
secret() {
  [ -e "$secrets/$1" ] || return 0
  cat "$secrets/$1" || { echo "alertmanager: secrets/alertmanager/$1 cannot be read: chmod 444 it" >&2 && return 1; }
}

# quoted TEXT is it as a string of YAML.
quoted() { printf "'%s'" "$(printf %s "$1" | sed "s/'/''/g")"; }

# url VARIABLE FILE sets the variable to what the file has, where it is empty.
url() {
  eval "value=\${$1:-}"
  file=$(secret "$2") || bad=1
  case ${value:+variable}${file:+file} in
  variablefile) wrong "both $1 and secrets/alertmanager/$2 are there; keep one of them" ;;
  file) value=$file ;;
  esac
  case $value in
  '' | http://?* | https://?*) ;;
  *) wrong "$1${file:+, in secrets/alertmanager/$2,} is no URL; it must begin with http:// or https://" ;;
  esac
  eval "$1=\$value"
}

# duration VARIABLE DEFAULT
duration() {
  eval "$1=\${$1:-$2} value=\${$1:-$2}"
  if ! printf %s "$value" | grep -xE '([0-9]+w)?([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?' | grep -q '[1-9]'; then
    wrong "$1 is '$value'; it must be a duration such as $2"
  fi
}

webhook() {
  [ -z "$1" ] || printf '      - url: %s\n        send_resolved: %s\n' "$(quoted "$1")" "$2"
}

receiver() {
  printf '  - name: %s\n' "$1"
  [ -z "$2$3" ] || printf '    webhook_configs:\n'
  webhook "$2" true
  webhook "$3" true
  [ -z "$ALERT_MAIL_TO" ] || printf '    email_configs:\n      - to: %s\n        send_resolved: true\n' "$(quoted "$ALERT_MAIL_TO")"
}

configuration() {
  if grep -q '^receivers:' "$base"; then
    cat "$base"
    return
  fi
  sed -e "s/ALERT_REPEAT_CRITICAL/$ALERT_REPEAT_CRITICAL/" -e "s/ALERT_REPEAT_WARNING/$ALERT_REPEAT_WARNING/" "$base"
  if [ -n "$ALERT_MAIL_TO" ]; then
    # On 465 TLS is there from the first byte, and what is required would be STARTTLS.
    case $ALERT_SMTP_HOST in *:465) starttls=false ;; *) starttls=$ALERT_SMTP_TLS ;; esac
    printf '\nglobal:\n  smtp_smarthost: %s\n  smtp_from: %s\n  smtp_require_tls: %s\n' \
      "$(quoted "$ALERT_SMTP_HOST")" "$(quoted "$ALERT_MAIL_FROM")" "$starttls"
    # Not by its _file option: before 0.27 a newline at the file's end would be part of the password.
    [ -z "$ALERT_SMTP_USER" ] || printf '  smtp_auth_username: %s\n  smtp_auth_password: %s\n' \
      "$(quoted "$ALERT_SMTP_USER")" "$(quoted "$password")"
  fi
  printf '\nreceivers:\n  - name: nobody\n  - name: watchdog\n'
  [ -z "$ALERT_WATCHDOG_URL" ] || printf '    webhook_configs:\n'
  webhook "$ALERT_WATCHDOG_URL" false
  receiver warning "$ALERT_WEBHOOK_URL" ''
  receiver critical "$ALERT_WEBHOOK_URL" "$ALERT_CRITICAL_WEBHOOK_URL"
}

if [ -d "$secrets" ] && ! { [ -r "$secrets" ] && [ -x "$secrets" ]; }; then
  wrong "secrets/alertmanager (ALERT_SECRETS) cannot be read: chmod 755 it"
fi
url ALERT_WEBHOOK_URL webhook_url
url ALERT_CRITICAL_WEBHOOK_URL critical_webhook_url
url ALERT_WATCHDOG_URL watchdog_url
duration ALERT_REPEAT_CRITICAL 1h
duration ALERT_REPEAT_WARNING 12h
: "${ALERT_MAIL_TO:=}" "${ALERT_MAIL_FROM:=}" "${ALERT_SMTP_HOST:=}" "${ALERT_SMTP_USER:=}" "${ALERT_SMTP_TLS:=true}"
password=$(secret smtp_password) || bad=1
if [ -n "$ALERT_MAIL_TO" ]; then
  case $ALERT_SMTP_HOST in
  ?*:[0-9]*) ;;
  *) wrong "ALERT_SMTP_HOST is '$ALERT_SMTP_HOST'; for mail to ALERT_MAIL_TO it must be a mail server with its port, such as mail.example.org:587" ;;
  esac
  [ -n "$ALERT_MAIL_FROM" ] || wrong "ALERT_MAIL_FROM is empty; mail needs a sender, such as postamt@example.org"
  [ -z "$ALERT_SMTP_USER" ] || [ -n "$password" ] || [ -n "$bad" ] ||
    wrong "ALERT_SMTP_USER is set; its password belongs into secrets/alertmanager/smtp_password"
  case $ALERT_SMTP_TLS${ALERT_SMTP_USER:+user} in
  true | trueuser | false) ;;
  falseuser) wrong "ALERT_SMTP_TLS is false and ALERT_SMTP_USER is set; Alertmanager sends no password without TLS: set it to true, or leave ALERT_SMTP_USER empty" ;;
  *) wrong "ALERT_SMTP_TLS is '$ALERT_SMTP_TLS'; it must be true or false" ;;
  esac
elif [ -n "$ALERT_SMTP_HOST$ALERT_MAIL_FROM$ALERT_SMTP_USER" ]; then
  wrong "ALERT_MAIL_TO is empty, so nobody gets mail; set it, or leave ALERT_SMTP_HOST, ALERT_MAIL_FROM and ALERT_SMTP_USER empty too"
fi
[ -z "$bad" ] || exit 1

if [ "${1:-}" = --print ]; then
  configuration
  exit
fi
configuration >/tmp/alertmanager.yml
# Debian's package has a name of its own for the program.
exec "$(command -v alertmanager || command -v prometheus-alertmanager)" --config.file=/tmp/alertmanager.yml "$@"

{{- define "penstock.name" -}}
{{- .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name (.Values.nameOverride | default .Chart.Name)) (contains (.Values.nameOverride | default .Chart.Name) .Release.Name)) | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "penstock.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "penstock.selector" . }}
{{- end }}

{{- define "penstock.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "penstock.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "penstock.name" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{/* A model's values, merged over the defaults. */}}
{{- define "penstock.model" -}}
{{- mergeOverwrite (deepCopy .root.Values.modelDefaults) .model | toYaml -}}
{{- end }}

{{/* A value of YAML as one of TOML, on one line. JSON writes all but tables alike, and numbers without a fraction. */}}
{{- define "penstock.toml" -}}
{{- if kindIs "map" . -}}
{ {{- range $index, $key := keys . | sortAlpha }}{{ if $index }},{{ end }} {{ toJson $key }} = {{ include "penstock.toml" (get $ $key) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $index, $each := . }}{{ if $index }}, {{ end }}{{ include "penstock.toml" $each }}{{ end }}]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end }}

{{/* The models file of one model. */}}
{{- define "penstock.modelsFile" -}}
[models.{{ toJson .name }}]
{{- range $key, $value := merge (dict "source" .source "aliases" .aliases "adapters" .adapters) .file }}
{{- if not (has (toJson $value) (list "\"\"" "[]" "{}" "null")) }}
{{ $key }} = {{ include "penstock.toml" $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* A model's name in the form that Kubernetes allows. A digest tells apart two names that would become the same. */}}
{{- define "penstock.slug" -}}
{{- $slug := . | lower | replace "/" "-" | replace "_" "-" | replace "." "-" | trunc 32 | trimAll "-" -}}
{{- if eq $slug . }}{{ $slug }}{{ else }}{{ $slug }}-{{ sha256sum . | trunc 6 }}{{ end -}}
{{- end }}

{{- define "penstock.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
serviceAccountName: {{ include "penstock.serviceAccount" . }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "penstock.apiImage" -}}
{{ .Values.image.api }}:{{ include "penstock.tag" . }}{{ with .Values.image.apiDigest }}@{{ . }}{{ end }}
{{- end }}

{{- define "penstock.workerImage" -}}
{{ .Values.image.worker }}:{{ include "penstock.tag" . }}{{ with .Values.image.workerDigest }}@{{ . }}{{ end }}
{{- end }}

{{- define "penstock.tag" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Settings as environment variables; a number keeps its digits. */}}
{{- define "penstock.settings" -}}
{{- range $name, $value := . }}
- name: PENSTOCK_{{ $name | upper }}
  value: {{ if kindIs "float64" $value }}{{ if eq $value (floor $value) }}{{ int64 $value | quote }}{{ else }}{{ $value | quote }}{{ end }}{{ else }}{{ $value | toString | quote }}{{ end }}
{{- end }}
{{- end }}

{{- define "penstock.redisSecret" -}}
{{- .Values.redis.existingSecret | default (printf "%s-redis" (include "penstock.name" .)) -}}
{{- end }}

{{/* A variable with the URL in `from`, in plain text or from a Secret. */}}
{{- define "penstock.urlVariable" -}}
- name: {{ .name }}
{{- if .from.existingSecret }}
  valueFrom:
    secretKeyRef: {name: {{ .from.existingSecret }}, key: {{ .from.existingSecretKey | default "url" }}}
{{- else }}
  value: {{ required .needed .from.url | quote }}
{{- end }}
{{- end }}

{{/* The main Redis. The kubelet expands the password, so it is never part of an object. */}}
{{- define "penstock.redisEnvironment" -}}
{{- if .Values.redis.enabled }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "penstock.redisSecret" . }}, key: password}
- name: PENSTOCK_REDIS_URL
  value: redis://:$(REDIS_PASSWORD)@{{ include "penstock.name" . }}-redis:6379/0
{{- else }}
{{ include "penstock.urlVariable" (dict "name" "PENSTOCK_REDIS_URL" "from" .Values.externalRedis "needed" "externalRedis.url or externalRedis.existingSecret is needed when redis.enabled is false") }}
{{- end }}
{{- end }}

{{/* The Redis of one model; takes .root and .shard. */}}
{{- define "penstock.modelRedis" -}}
{{- if .shard }}
{{- $from := required (printf "models: shard %s is not in externalRedis.shards" .shard) (get .root.Values.externalRedis.shards .shard) }}
{{ include "penstock.urlVariable" (dict "name" "PENSTOCK_REDIS_URL" "from" $from "needed" (printf "externalRedis.shards.%s: a url or an existingSecret is needed" .shard)) }}
{{- else }}
{{- include "penstock.redisEnvironment" .root }}
{{- end }}
{{- end }}

{{/* The main Redis and the shards, for the API. */}}
{{- define "penstock.apiRedis" -}}
{{- include "penstock.redisEnvironment" . }}
{{- $urls := list }}
{{- range $name, $from := .Values.externalRedis.shards }}
{{- $variable := printf "SHARD_%d" (len $urls) }}
{{- $urls = append $urls (printf "$(%s)" $variable) }}
{{ include "penstock.urlVariable" (dict "name" $variable "from" $from "needed" (printf "externalRedis.shards.%s: a url or an existingSecret is needed" $name)) }}
{{- end }}
{{- if $urls }}
- name: PENSTOCK_SHARD_URLS
  value: {{ join " " $urls | quote }}
{{- end }}
{{- end }}

{{- define "penstock.adminSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-auth" (include "penstock.name" .)) -}}
{{- end }}

{{- define "penstock.hasAdmin" -}}
{{- if or .Values.auth.adminKey .Values.auth.existingSecret }}yes{{ end -}}
{{- end }}

{{- define "penstock.hub" -}}
- name: HF_HOME
  value: /models
{{- if or .Values.auth.hfToken .Values.auth.hfTokenSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.auth.hfTokenSecret | default (printf "%s-hub" (include "penstock.name" .)) }}
      key: {{ .Values.auth.hfTokenSecretKey }}
{{- end }}
{{- end }}

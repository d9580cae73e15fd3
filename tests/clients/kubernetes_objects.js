// Patterns, enums and formats of custom resources, as their projects' CRDs have them: JSON objects on stdin.
import { HTTPRoute } from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
import { ScaledObject, TriggerAuthentication } from "@kubernetes-models/keda/keda.sh/v1alpha1";
import { PodMonitor, PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import { readFileSync } from "node:fs";

const kinds = { HTTPRoute, ScaledObject, TriggerAuthentication, PodMonitor, PrometheusRule };
for (const { kind, ...object } of JSON.parse(readFileSync(0, "utf8"))) new kinds[kind](object).validate();

//! GET /openapi.json: the interface as an OpenAPI document, made from the list of routes.

use anneal_api::shadow;
use serde_json::{Map, Value, json};
use warp::{http::StatusCode, reply::Response};

use super::{ROUTES, Route};
use crate::answer::json_response;

pub(super) fn answer() -> Response {
    json_response(StatusCode::OK, &document())
}

/// The OpenAPI document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        paths.insert(route.path.to_owned(), json!({ route.method.to_lowercase(): operation(route) }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Anneal inference server", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": schemas()},
    })
}

fn operation(route: Route) -> Value {
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route.path),
        "responses": responses(route.path),
    });
    if route.path == "/predict" {
        operation["requestBody"] = json!({
            "required": true,
            "content": {
                "multipart/form-data": {"schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary", "description": "An image file with an image/* content type; several files give the answer `predictions`"}},
                }},
                "image/*": {"schema": {"type": "string", "format": "binary"}},
            },
        });
    }
    if route.path == "/feedback" {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema("Feedback")}}});
    }
    if route.path == "/v2/models/{model}/infer" {
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema("Object")}}});
    }
    if route.path.contains("{model}") {
        operation["parameters"] =
            json!([{"name": "model", "in": "path", "required": true, "schema": {"type": "string"}}]);
    }
    operation
}

fn operation_id(path: &str) -> String {
    match path.trim_matches('/').replace(['{', '}'], "").replace(['/', '.'], "_") {
        name if name.is_empty() => "root".to_owned(),
        name => name,
    }
}

fn responses(path: &str) -> Value {
    let error =
        |text: &str| json!({"description": text, "content": {"application/json": {"schema": schema("Problem")}}});
    let json_of = |name: &str| json!({"description": "OK", "content": {"application/json": {"schema": schema(name)}}});
    match path {
        "/predict" => json!({
            "200": {"description": "One prediction, with its id in X-Prediction-Id, or several", "content": {"application/json": {"schema": {"anyOf": [schema("Prediction"), schema("Predictions")]}}}},
            "400": error("The file is no image by its content type, or the form is malformed"),
            "408": error("The upload took too long"),
            "413": error("The body is too large"),
            "422": error("The field `file` is missing, or the image cannot be decoded"),
            "500": error("The model failed, or its outputs are not finite"),
            "503": error("No model yet, or the server is at its limit; Retry-After says when to ask again"),
        }),
        "/feedback" => json!({
            "200": json_of("Object"),
            "409": error("The prediction is of another checkpoint"),
            "422": error("The id is not one of this deployment, or the class is none of the model's"),
        }),
        "/v2/models/{model}/infer" => json!({
            "200": json_of("Object"),
            "400": {"description": "The tensors are not what the model takes"},
            "404": {"description": "There is no such model or version"},
            "503": {"description": "No model yet, or the server is at its limit; Retry-After says when to ask again"},
        }),
        "/health" => json!({"200": json_of("Health"), "503": json_of("Health")}),
        "/readyz" => json!({"200": json_of("Object"), "503": json_of("Object")}),
        "/model/info" => json!({"200": json_of("ModelInfo"), "503": error("No model yet")}),
        "/metrics" => json!({"200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}}),
        shadow::PATH => json!({"200": json_of("Answers")}),
        "/docs" | "/redoc" => {
            json!({"200": {"description": "OK", "content": {"text/html": {"schema": {"type": "string"}}}}})
        }
        _ => json!({"200": json_of("Object")}),
    }
}

fn schema(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn schemas() -> Value {
    let share = json!({"type": "number", "minimum": 0, "maximum": 1});
    json!({
        "Object": {"type": "object"},
        "Problem": {"type": "object", "required": ["detail"], "properties": {"detail": {"description": "A sentence, or a list of validation errors"}}},
        "Prediction": {
            "type": "object",
            "required": ["prediction", "confidence", "probabilities", "timestamp", "processing_time_ms"],
            "properties": {
                "prediction": {"type": "string"},
                "confidence": share,
                "probabilities": {"type": "object", "additionalProperties": share},
                "timestamp": {"type": "string", "description": "UTC, as Python's datetime.isoformat() writes it"},
                "processing_time_ms": {"type": "number"},
            },
        },
        "Predictions": {
            "type": "object",
            "required": ["predictions", "timestamp", "processing_time_ms"],
            "properties": {"predictions": {"type": "array", "items": {"type": "object"}}, "timestamp": {"type": "string"}, "processing_time_ms": {"type": "number"}},
        },
        "Answers": {
            "type": "array",
            "items": {
                "type": "array",
                "prefixItems": [
                    {"type": "string", "description": "Digest of the request's X-Request-Id"},
                    {"type": ["string", "null"], "description": "Digest of that id and the predicted classes; null where the request was refused, or the model failed"},
                ],
            },
        },
        "Feedback": {
            "type": "object",
            "required": ["id", "class"],
            "properties": {"id": {"type": "string", "description": "The X-Prediction-Id of an answer"}, "class": {"type": "string", "description": "The true class"}},
        },
        "Health": {
            "type": "object",
            "required": ["status", "model_loaded", "device", "timestamp"],
            "properties": {
                "status": {"enum": ["healthy", "unhealthy"]},
                "model_loaded": {"type": "boolean"},
                "device": {"type": "string"},
                "timestamp": {"type": "string"},
                "reason": {"type": "string"},
            },
        },
        "ModelInfo": {
            "type": "object",
            "required": ["model_loaded", "model_type", "num_parameters", "device", "classes", "input_size", "test_accuracy"],
            "properties": {
                "model_loaded": {"type": "boolean"},
                "model_type": {"type": "string"},
                "num_parameters": {"type": "integer"},
                "device": {"type": "string"},
                "classes": {"type": "array", "items": {"type": "string"}},
                "input_size": {"type": "string", "examples": ["224x224"]},
                "test_accuracy": {"type": ["number", "null"]},
                "model_name": {"type": "string"},
                "sha256": {"type": "string"},
                "run": {"type": ["string", "null"]},
                "dataset": {"type": ["object", "null"]},
                "preprocessing": {"type": "object"},
                "workers": {"type": "integer"},
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_route_and_no_dangling_reference() {
        let document = document();
        for route in ROUTES {
            assert!(
                document["paths"][route.path][route.method.to_lowercase()].is_object(),
                "{} is missing",
                route.path
            );
        }
        let text = document.to_string();
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().expect("a name");
            assert!(document["components"]["schemas"][name].is_object(), "{name} is not defined");
        }
    }
}
